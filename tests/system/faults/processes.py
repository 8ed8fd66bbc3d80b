"""Starts a command and finds all its processes, by a mark in their environment."""

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
    """A command in its own process group."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        listens: bool = False,
    ) -> None:
        """Start the command; its output goes to a file.

        Args:
            command: The command and its arguments.
            log: File for its output.
            environment: Variables in addition to this process's own.
            listens: Whether it reads `popen.stdin` until that is closed.
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
        """Check whether the command has ended; processes that it started may still run."""
        return self.popen.poll() is not None

    def wait(self, patience_seconds: float) -> int:
        """Wait for its end; return the exit code.

        Raises:
            AssertionError: it takes too long.
        """
        try:
            return self.popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {patience_seconds:.0f} s:\n{self.shown()}"
            ) from None

    def wait_until(self, happened: Callable[[], bool], patience_seconds: float = 300.0) -> None:
        """Wait until a condition holds while the command runs.

        Raises:
            AssertionError: the command has ended, or it takes too long.
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
        """Return the id of a process of the command whose command line contains a word."""
        found = (p.pid for p in self._ours() if word in " ".join(_command_line(p)))
        return next(found, None)

    def left_over(self, patience_seconds: float = 60.0) -> int:
        """Count the command's processes that still run after a while; name and end them."""
        until = time.monotonic() + patience_seconds
        while (found := self._ours()) and time.monotonic() < until:
            time.sleep(0.2)
        for process in found:
            print(f"    left behind: {process.pid} {' '.join(_command_line(process))[:300]}")
            process.kill()
        return len(found)

    def left_segments(self) -> int:
        """Count new segments of shared memory that no process uses."""
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
    """Check whether any process has mapped a segment."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(_SHARED_MEMORY / segment) in maps.read_text():
                return True
        except OSError:  # it has ended, or is another user's
            continue
    return False
