"""Two of the faults that `make faults` injects many times."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from search.console.signals import INTERRUPTED
from tests.system.faults.catalogue import check_stopped, truncate
from tests.system.faults.ordeal import Ordeal
from tests.system.faults.processes import Process

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_killed_in_the_search(tmp_path: Path) -> None:
    ordeal = Ordeal("SIGKILL", tmp_path, n_trials=6)

    def inject(process: Process) -> None:
        ordeal.in_the_search(process)
        process.kill()

    ordeal.session(inject)
    tally = ordeal.finish()
    assert tally.injected == 1
    assert tally.is_clean, tally


@pytest.mark.long
def test_interrupted_in_the_search_with_damaged_files(tmp_path: Path) -> None:
    """A graceful stop, and then a truncated checkpoint and summary."""
    ordeal = Ordeal("SIGINT", tmp_path, n_trials=6)

    def inject(process: Process) -> None:
        ordeal.in_the_search(process)
        process.popen.send_signal(signal.SIGINT)
        check_stopped(ordeal, process, INTERRUPTED)
        assert (ordeal.run / "report.html").is_file()

    ordeal.session(inject)
    truncate(ordeal.run / "summary.json", 0.5)
    for path in ordeal.checkpoints():
        truncate(path, 0.5)
        ordeal.damaged.add(int(path.parent.name))
    tally = ordeal.finish()
    assert tally.injected == 1
    assert tally.is_clean, tally
