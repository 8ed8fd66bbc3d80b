"""Pass the events of trials on to callbacks, in the driver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from spaces.base import Space
from spaces.rules import Value
from trainables.trial_result import TrialResult

_log = logging.getLogger(__name__)


class TrialCallback(Protocol):
    """Called in the driver when a trial starts, ends an epoch, and ends."""

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Handle the start of a trial; `params` are the searched ones."""

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """Handle the end of an epoch."""

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """Handle the end of a trial; `state` is "complete", "pruned" or "failed"."""


class TolerantCallback:
    """A `TrialCallback` whose errors end nothing: for what only shows the trials."""

    def __init__(
        self, callback: TrialCallback, tolerating: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Wrap a callback.

        Args:
            callback: The callback.
            tolerating: Returns a context that handles the errors within it.
        """
        self._callback = callback
        self._tolerating = tolerating

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `TrialCallback`."""
        with self._tolerating():
            self._callback.trial_started(number, params)

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `TrialCallback`."""
        with self._tolerating():
            self._callback.trial_epoch(number, result)

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `TrialCallback`."""
        with self._tolerating():
            self._callback.trial_ended(number, state, result)


class TrialEvents:
    """Pass the events of trials on to the callbacks, and keep the first error of writing.

    Tune would make an error of the file system one of the trial's.

    Attributes:
        write_error: Why a file of the run can no longer be written; None while it can.
    """

    def __init__(self, space: Space, callbacks: Sequence[TrialCallback]) -> None:
        self._searched = set(space.distributions)
        self._callbacks = callbacks
        self._started: set[int] = set()
        self.write_error: Exception | None = None

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Notify the callbacks, once, also where a trial is started again."""
        if number in self._started:
            return
        self._started.add(number)
        searched = {k: v for k, v in params.items() if k in self._searched}
        with self.writing():
            for callback in self._callbacks:
                callback.trial_started(number, searched)

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """Notify the callbacks."""
        with self.writing():
            for callback in self._callbacks:
                callback.trial_epoch(number, result)

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """Notify the callbacks."""
        with self.writing():
            for callback in self._callbacks:
                callback.trial_ended(number, state, result)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep the first error of the file system."""
        try:
            yield
        except OSError as error:
            if self.write_error is None:
                _log.error("the run folder cannot be written: %s", error)
            self.write_error = self.write_error or error
