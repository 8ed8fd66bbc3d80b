"""Two of the faults that `make faults` injects many times."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from search.console.signals import INTERRUPTED
from tests.system.faults.catalogue import check_stopped, truncate
from tests.system.faults.experiment import Experiment
from tests.system.faults.processes import Process

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_killed_in_the_search(tmp_path: Path) -> None:
    experiment = Experiment("SIGKILL", tmp_path, n_trials=6)

    def inject(process: Process) -> None:
        experiment.in_the_search(process)
        process.kill()

    experiment.session(inject)
    outcome = experiment.finish()
    assert outcome.injected == 1
    assert outcome.is_clean, outcome


@pytest.mark.long
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
