"""Write the journal of a study so that what happens to its file loses nothing."""

from __future__ import annotations

import copy
import heapq
import json
import logging
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from trainables.atomic_write import write_atomically, write_patiently
from trainables.json_text import parse_json

_log = logging.getLogger(__name__)

MAX_TRIALS_SEEN = 1000
"""Trials that a sampler reads at most, beside those that run: all of them in nearly every search.
TPE's time for a proposal grows with their number."""
N_BEST_SEEN = 100
"""The best ones of these, whenever they ended: TPE's better group has 25 at most."""


class Journal(BaseJournalBackend):
    """The journal of a study that this process writes, and others read.

    All lines are kept in memory. Where the file is deleted, cut or overwritten meanwhile, it is
    written again as it was.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = _log.warning) -> None:
        """Read the journal, or begin one.

        Args:
            path: The file, of whole lines.
            warn: Called with what happens to the file.
        """
        self._path, self._warn = path, warn
        path.touch()
        self._content = bytearray(path.read_bytes())
        self._lines = bytes(self._content).splitlines(keepends=True)
        self._syncs_later, self._is_synced = False, True

    @contextmanager
    def synced_once(self) -> Iterator[None]:
        """Append to the file as always, but wait for the disk only once, at the end of the block.

        A trial that begins is ten logs, and a disk may take milliseconds for each. They are in the
        file at once, in their order: a process that is killed loses none.
        """
        self._syncs_later = True
        try:
            yield
        finally:
            self._syncs_later = False
            if not self._is_synced:
                write_patiently(self._sync, self._path, self._warn)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from a number on."""
        for line in self._lines[log_number_from:]:
            yield parse_json(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs; waits while the file cannot be written: see `write_patiently`."""
        lines = [f"{json.dumps(log, separators=(',', ':'))}\n".encode() for log in logs]
        write_patiently(lambda: self._write(b"".join(lines)), self._path, self._warn)
        self._add(lines)

    def _write(self, added: bytes) -> None:
        """Append to the file, or write it again where it is not what was written last."""
        found = self._path.stat().st_size if self._path.exists() else -1
        if found > len(self._content):
            self._adopt(added)
            found = self._path.stat().st_size
        if found == len(self._content):
            with self._path.open("ab") as file:
                file.write(added)
                file.flush()
                self._is_synced = not self._syncs_later
                if self._is_synced:
                    os.fsync(file.fileno())
            return
        what = "was deleted" if found < 0 else "was overwritten or cut"
        self._warn(f"{self._path} {what} by another program; it is written again as it was")
        with write_atomically(self._path) as partial:
            partial.write_bytes(bytes(self._content) + added)

    def _sync(self) -> None:
        if self._path.exists():  # a deleted one is written again with the next log
            with self._path.open("ab") as file:
                os.fsync(file.fileno())
        self._is_synced = True

    def _adopt(self, added: bytes) -> None:
        """Take over lines that another process has appended, such as a dashboard's notes.

        What an attempt before has written of the lines to be added is cut off.
        """
        content = self._path.read_bytes()
        more = content[len(self._content) :]
        if not content.startswith(self._content):
            return
        if added.startswith(more):
            os.truncate(self._path, len(self._content))
        elif more.endswith(b"\n"):
            self._add(more.splitlines(keepends=True))

    def _add(self, lines: list[bytes]) -> None:
        self._lines += lines
        self._content += b"".join(lines)


class StudyStorage(JournalStorage):
    """The storage of a study that this process writes.

    Attributes:
        journal: Its journal.
    """

    def __init__(self, journal: Journal) -> None:
        """Read the study, or begin one."""
        super().__init__(journal)
        self.journal = journal
        self._bounded_thread: int | None = None
        self._seen: list[FrozenTrial] | None = None

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Return `MAX_TRIALS_SEEN` trials and those that run, where more are asked for.

        They are chosen once, so that a proposal looks through all trials once; no other trial than
        the one that is proposed may change meanwhile. Other threads, such as those of trackers,
        are given all trials.
        """
        self._bounded_thread = get_ident()
        try:
            yield
        finally:
            self._bounded_thread, self._seen = None, None

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials in these states, by number; see `bounded`."""
        if self._bounded_thread != get_ident() or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        if self._seen is None:
            self._seen = best_and_latest(super().get_all_trials(study_id, deepcopy=False))
        trials = [trial for trial in self._seen if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def best_and_latest(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the best and the latest `MAX_TRIALS_SEEN` trials, and all that run, by number."""
    if len(trials) <= MAX_TRIALS_SEEN:
        return trials
    n_latest = MAX_TRIALS_SEEN - N_BEST_SEEN
    earlier, latest = trials[:-n_latest], trials[-n_latest:]
    complete = [trial for trial in earlier if trial.state == TrialState.COMPLETE]
    best = heapq.nlargest(N_BEST_SEEN, complete, key=lambda trial: trial.value or 0.0)
    kept = {trial.number for trial in best}
    running = TrialState.RUNNING
    return [t for t in earlier if t.number in kept or t.state == running] + latest
