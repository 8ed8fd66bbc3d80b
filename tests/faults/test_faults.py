"""The quick ones of the faults that `make faults` injects by the dozen."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from injection import Count, Process, Search, break_often

from search.interruption import INTERRUPTED, TERMINATED
from search.keeper import CHECKPOINT

pytestmark = pytest.mark.slow


def in_the_search(search: Search, process: Process) -> None:
    """Wait until a trial has a checkpoint."""
    until = time.monotonic() + 120
    while not list(search.run.glob(f"trials/*/{CHECKPOINT}")) and time.monotonic() < until:
        if process.popen.poll() is not None:
            raise AssertionError(process.popen.communicate()[0])
        time.sleep(0.05)


def test_killed_in_the_search(tmp_path: Path) -> None:
    search, count = Search(tmp_path, n_trials=6), Count("SIGKILL")

    def inject(process: Process) -> None:
        in_the_search(search, process)
        process.kill()

    break_often(count, search, 1, inject)
    assert (count.injected, count.lost, count.doubled, count.repeated) == (1, 0, 0, 0)
    assert count.left_over == 0


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)]
)
def test_interrupted_in_the_search_with_damaged_files(
    number: signal.Signals, exit_code: int, tmp_path: Path
) -> None:
    """A stop in good order, and then a truncated checkpoint and summary."""
    search, count = Search(tmp_path, n_trials=6), Count(number.name)

    def inject(process: Process) -> None:
        in_the_search(search, process)
        process.popen.send_signal(number)
        shown, _ = process.popen.communicate(timeout=60)
        assert process.popen.returncode == exit_code, shown
        assert "Traceback" not in shown
        assert f"--resume {search.run}" in shown
        if number == signal.SIGINT:  # SIGTERM leaves little time for a report
            assert (search.run / "report.html").is_file()
        for path in (search.run / "summary.json", *search.run.glob(f"trials/*/{CHECKPOINT}")):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    search.epochs_behind = lambda: 0  # type: ignore[method-assign]  # the checkpoint is damaged
    break_often(count, search, 1, inject)
    assert (count.injected, count.lost, count.doubled, count.left_over) == (1, 0, 0, 0)
