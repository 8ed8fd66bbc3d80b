"""Trackers get everything, and the search waits for none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from search.reporting.trackers import worker
from search.reporting.trackers.base import TrackedSearch, TrackedTrial, Tracker
from search.reporting.trackers.worker import Trackers
from search.runs.summary import RunSummary
from tests.fixtures.tracked_search import SUMMARY, HandDrivenSearch, four_trials
from trainables.trial_result import TrialResult


class Recorder(Tracker):
    """A tracker that keeps what it gets, and is away while `away` is set."""

    name = "Recorder"

    def __init__(self) -> None:
        self.away = False
        self.begun: list[str] = []
        self.trials: dict[int, TrackedTrial] = {}
        self.ends: list[RunSummary | None] = []
        self.updated = Event()

    def begin(self, search: TrackedSearch) -> str:
        self._check()
        self.begun.append(search.name)
        return "here"

    def update(self, trial: TrackedTrial) -> None:
        self._check()
        self.trials[trial.number] = trial
        self.updated.set()

    def end(self, summary: RunSummary | None) -> None:
        self._check()
        self.ends.append(summary)

    def _check(self) -> None:
        if self.away:
            raise ConnectionError("refused")


class Shown:
    """What a user sees."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.lines: list[str] = []

    @contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.errors.append(f"{what}: {error}")


def run(search: HandDrivenSearch, recorder: Recorder, shown: Shown) -> Trackers:
    trackers = Trackers([recorder], shown.tolerating, shown.lines.append)
    trackers.begin(search.tracked)
    return trackers


def test_every_trial_is_shown_with_its_epochs_and_its_end(tmp_path: Path) -> None:
    search, recorder, shown = HandDrivenSearch(tmp_path / "run"), Recorder(), Shown()
    four_trials(search)
    with run(search, recorder, shown) as trackers:
        number = search.begin()
        search.epoch(number, 1)
        trackers.trial_epoch(number, TrialResult())
        trackers.finish(SUMMARY)
    states = [recorder.trials[n].state for n in range(5)]
    assert states == ["complete", "pruned", "failed", "running", "running"]
    assert [len(recorder.trials[n].epochs) for n in range(5)] == [3, 2, 0, 2, 1]
    assert recorder.trials[0].epochs[2]["val_accuracy"] == 0.8
    assert recorder.trials[0].outcome["seconds"] == 12.0
    assert recorder.trials[2].reason == "out of memory"
    assert (recorder.begun, recorder.ends) == (["run"], [SUMMARY])
    assert (shown.lines, shown.errors) == (["Recorder: here"], [])


def test_a_tracker_that_is_away_gets_everything_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RETRY_SECONDS", (0.01, 0.02))
    search, recorder, shown = HandDrivenSearch(tmp_path / "run"), Recorder(), Shown()
    recorder.away = True
    with run(search, recorder, shown) as trackers:
        four_trials(search)
        for number in range(4):
            trackers.trial_started(number, {})
        recorder.away = False
        assert recorder.updated.wait(20)
    assert sorted(recorder.trials) == [0, 1, 2, 3]
    assert recorder.ends == [None], "nobody said that the run has finished"


def test_one_that_stays_away_ends_nothing(tmp_path: Path) -> None:
    search, recorder, shown = HandDrivenSearch(tmp_path / "run"), Recorder(), Shown()
    recorder.away = True
    with run(search, recorder, shown) as trackers:
        four_trials(search)
        trackers.trial_started(0, {})
        trackers.finish(SUMMARY)
    assert recorder.ends == []
    assert set(shown.errors) == {"a part of what Recorder shows: refused"}


def test_an_exception_of_the_run_ends_the_threads(tmp_path: Path) -> None:
    search, recorder, shown = HandDrivenSearch(tmp_path / "run"), Recorder(), Shown()
    with pytest.raises(KeyboardInterrupt), run(search, recorder, shown):
        raise KeyboardInterrupt
    assert recorder.ends == [None]


def test_a_run_that_never_came_to_its_search_has_nothing_to_end() -> None:
    recorder, shown = Recorder(), Shown()
    with Trackers([recorder], shown.tolerating, shown.lines.append):
        pass
    assert (recorder.begun, recorder.ends, shown.errors) == ([], [], [])
