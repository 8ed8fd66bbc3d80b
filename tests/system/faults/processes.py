"""A command with all processes that it starts, told from others by a mark in their environment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]
_SHARED_MEMORY = Path("/dev/shm")


class Process:
    """A command that runs in a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        listens: bool = False,
    ) -> None:
        """Start it; what it prints goes to a file.

        Args:
            command: And its arguments.
            log: That file.
            environment: Beside this process's own.
            listens: Whether it reads what is written to `popen.stdin`, until that is closed.
        """
        self._mark = uuid.uuid4().hex
        self._segments_before = _segments()
        self._log = log
        with log.open("wb") as shown:
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    **environment,
                    "FAULT_MARK": self._mark,
                },
                stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                stdout=shown,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def shown(self) -> str:
        """Return what it has printed so far."""
        return self._log.read_text(errors="replace")

    def has_ended(self) -> bool:
        """Say whether the command is over; what it started may not be."""
        return self.popen.poll() is not None

    def wait(self, patience_seconds: float) -> int:
        """Wait for its end; return the exit code.

        Raises:
            AssertionError: it goes on for too long.
        """
        try:
            return self.popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {patience_seconds:.0f} s:\n{self.shown()}"
            ) from None

    def wait_until(self, happened: Callable[[], bool], patience_seconds: float = 180.0) -> None:
        """Wait for something that is to happen while it runs.

        Raises:
            AssertionError: it has ended, or goes on for too long.
        """
        until = time.monotonic() + patience_seconds
        while not happened():
            if self.has_ended() or time.monotonic() > until:
                raise AssertionError(f"what was waited for did not happen:\n{self.shown()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End its whole process group at once."""
        if not self.has_ended():
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def named(self, word: str) -> int | None:
        """Return the id of a process that it started, whose command line holds a word."""
        found = (p.pid for p in self._ours() if word in " ".join(_command_line(p)))
        return next(found, None)

    def left_over(self, patience_seconds: float = 60.0) -> int:
        """Count its processes that are still there after a while, and end them."""
        until = time.monotonic() + patience_seconds
        while (found := self._ours()) and time.monotonic() < until:
            time.sleep(0.2)
        for process in found:
            process.kill()
        return len(found)

    def left_segments(self) -> int:
        """Count new segments of shared memory that no living process uses, whoever made them."""
        new = _segments() - self._segments_before
        return sum(not _is_used(name) for name in new)

    def _ours(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("FAULT_MARK") == self._mark
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            return False


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _segments() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()


def _is_used(segment: str) -> bool:
    """Say whether any process has a segment mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(_SHARED_MEMORY / segment) in maps.read_text():
                return True
        except OSError:  # it has ended, or is another user's
            continue
    return False
