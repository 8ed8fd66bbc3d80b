"""Two of the faults that `make faults` injects many times, and what becomes of its rows."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search.console.signals import INTERRUPTED
from tests.system.faults import injection
from tests.system.faults.catalogue import MissingRightsError, check_stopped, truncate
from tests.system.faults.experiment import Experiment, Outcome
from tests.system.faults.processes import Process


@pytest.mark.slow
@pytest.mark.alone
def test_killed_in_the_search(tmp_path: Path) -> None:
    experiment = Experiment("SIGKILL", tmp_path, n_trials=6)

    def inject(process: Process) -> None:
        experiment.in_the_search(process)
        process.kill()

    experiment.session(inject)
    outcome = experiment.finish()
    assert outcome.injected == 1
    assert outcome.is_clean, outcome


@pytest.mark.slow
@pytest.mark.alone
def test_interrupted_in_the_search_with_damaged_files(tmp_path: Path) -> None:
    """A graceful stop, and then a truncated checkpoint and summary."""
    experiment = Experiment("SIGINT", tmp_path, n_trials=6)

    def inject(process: Process) -> None:
        experiment.in_the_search(process)
        process.popen.send_signal(signal.SIGINT)
        check_stopped(experiment, process, INTERRUPTED)
        assert (experiment.run / "report.html").is_file()

    experiment.session(inject)
    truncate(experiment.run / "summary.json", 0.5)
    for path in experiment.checkpoints():
        truncate(path, 0.5)
        experiment.damaged.add(int(path.parent.name))
    outcome = experiment.finish()
    assert outcome.injected == 1
    assert outcome.is_clean, outcome


def harmless(folder: Path) -> Outcome:
    return Outcome("harmless", injected=1)


def lossy(folder: Path) -> Outcome:
    return Outcome("lossy", injected=1, lost=1)


def without_rights(folder: Path) -> Outcome:
    raise MissingRightsError("no disk could be mounted")


def undone(folder: Path) -> Outcome:
    raise AssertionError("still running after 9 s")


def broken(folder: Path) -> Outcome:
    raise FileNotFoundError(2, "No such file", "x")


@pytest.mark.parametrize(
    ("faults", "verdicts"),
    [
        ((harmless, without_rights, harmless), ["ok", "skipped", "ok"]),
        ((undone, harmless), ["HARM", "ok"]),
        ((broken, harmless, lossy), ["HARM", "ok", "HARM"]),
    ],
)
def test_every_fault_has_a_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faults: tuple[Callable[[Path], Outcome], ...],
    verdicts: list[str],
) -> None:
    out, n_written = tmp_path / "faults.json", []

    def last(folder: Path) -> Outcome:
        n_written.append(len(json.loads(out.read_text())["tables"]["faults"]))
        return harmless(folder)

    monkeypatch.setattr(injection, "FAULTS", faults)
    monkeypatch.setattr(injection, "SURROUNDINGS", ())
    monkeypatch.setattr(injection, "server_terminated", last)
    monkeypatch.setattr(sys, "argv", ["faults", "--out", str(out)])
    code = injection.main()
    rows = json.loads(out.read_text())["tables"]["faults"]
    assert [row["verdict"] for row in rows] == [*verdicts, "ok"]
    assert n_written == [len(faults)], "written after each row"
    assert code == int("HARM" in verdicts)
    shown = capsys.readouterr().out
    if without_rights in faults:
        assert rows[1]["reason"] == "no disk could be mounted"
        assert "without_rights: skipped: no disk could be mounted" in shown
    if broken in faults:
        assert "No such file" in shown
