"""Keep trackers up to date beside the search, which waits for none of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Condition, Thread
from types import TracebackType

from search.reporting.trackers.base import TrackedSearch, Tracker
from search.runs.summary import RunSummary
from spaces.rules import Value
from trainables.trial_result import TrialResult

_log = logging.getLogger(__name__)

_RETRY_SECONDS = (30.0, 600.0)
"""After how long a tracker that is away is tried again: first, and at most."""
_MAX_END_SECONDS = 300.0
"""Time in which a tracker may take what is left at the end of a run."""


class Trackers:
    """Passes trials on to trackers; a `search.tuning.trial_events.TrialCallback`.

    Each has a thread of its own. What one could not take is given to it again, at the latest when
    the run is resumed: everything is in the run's folder.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        tolerating: Callable[[str], AbstractContextManager[None]],
        say: Callable[[str], None],
    ) -> None:
        """Begin nothing yet.

        Args:
            trackers: The trackers.
            tolerating: Returns a context that handles the errors of a tracker; its argument says
                what an error costs.
            say: Called with where the run is shown.
        """
        self._workers = [_Worker(tracker, tolerating, say) for tracker in trackers]
        self._summary: RunSummary | None = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.close(self._summary)
        for worker in self._workers:
            worker.join()

    def begin(self, search: TrackedSearch) -> None:
        """Begin to show a search, the trials of earlier sessions included."""
        for worker in self._workers:
            worker.begin(search)

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._update(number)

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._update(number)

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._update(number)

    def finish(self, summary: RunSummary) -> None:
        """Have the results of the finished run shown at the end."""
        self._summary = summary

    def _update(self, number: int) -> None:
        for worker in self._workers:
            worker.update(number)


class _Worker:
    """Keeps one tracker up to date, in a thread."""

    def __init__(
        self,
        tracker: Tracker,
        tolerating: Callable[[str], AbstractContextManager[None]],
        say: Callable[[str], None],
    ) -> None:
        self._tracker, self._tolerating, self._say = tracker, tolerating, say
        self._cost = f"a part of what {tracker.name} shows"
        self._search: TrackedSearch | None = None
        self._changed: set[int] = set()
        self._woken = Condition()
        self._closing = self._has_begun = self._has_ended = False
        self._summary: RunSummary | None = None
        self._thread = Thread(target=self._run, daemon=True)

    def begin(self, search: TrackedSearch) -> None:
        self._search = search
        self._changed.update(trial.number for trial in search.begun_trials())
        self._thread.start()

    def update(self, number: int) -> None:
        with self._woken:
            self._changed.add(number)
            self._woken.notify()

    def close(self, summary: RunSummary | None) -> None:
        with self._woken:
            self._summary, self._closing = summary, True
            self._woken.notify()

    def join(self) -> None:
        if self._search is None:
            return
        with self._tolerating(self._cost):
            self._thread.join(_MAX_END_SECONDS)
            if self._thread.is_alive():
                raise TimeoutError(
                    f"{self._tracker.name} took longer than {_MAX_END_SECONDS:.0f} s"
                )

    def _run(self) -> None:
        pause, longest = _RETRY_SECONDS
        is_there = self._work()
        while not self._closing:
            with self._woken:
                if is_there:
                    self._woken.wait_for(lambda: self._changed or self._closing)
                else:
                    self._woken.wait_for(lambda: self._closing, pause)
                    pause = min(2 * pause, longest)
            is_there = self._work()
        if not self._has_ended:  # it was closed meanwhile
            self._work()

    def _work(self) -> bool:
        """Do what is to be done; return whether that was possible."""
        is_done = False
        try:
            with self._tolerating(self._cost):
                self._catch_up()
                is_done = True
        except OSError as error:  # of a full disk: the run itself will say so
            _log.warning("%s: %s", self._tracker.name, error)
        return is_done

    def _catch_up(self) -> None:
        if self._search is None:
            return
        if not self._has_begun:
            place = self._tracker.begin(self._search)
            self._has_begun = True
            self._say(f"{self._tracker.name}: {place}")
        closing = self._closing  # nothing changes after it
        while (number := self._next_changed()) is not None:
            try:
                self._tracker.update(self._search.trial(number))
            except BaseException:
                self.update(number)
                raise
        if closing:
            self._tracker.end(self._summary)
            self._has_ended = True

    def _next_changed(self) -> int | None:
        with self._woken:
            if not self._changed:
                return None
            number = min(self._changed)
            self._changed.remove(number)
            return number
