"""Rungs rebuilt from the study decide as the ones that were lost would have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from search.asha import RebuiltASHA, grace_epochs


def trial(number: int, reported: int = 0, session: str = "one") -> Any:
    config = {"number": number, "reported": reported}
    return SimpleNamespace(trial_id=f"{session}-{number}", config=config)


def feed(
    scheduler: RebuiltASHA,
    number: int,
    curve: list[float],
    reported: int = 0,
    first: int = 1,
    session: str = "one",
) -> int:
    """Tell a trial's epochs from `first`; return the epoch it was stopped at, or 0."""
    told = trial(number, reported, session)
    scheduler.on_trial_add(None, told)
    for epoch in range(first, len(curve) + 1):
        result = {"epoch": epoch, "best_val_accuracy": max(curve[:epoch])}
        if scheduler.on_trial_result(None, told, result) == TrialScheduler.STOP:
            return epoch if epoch < len(curve) else 0  # at its full length every trial ends
    return 0


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, []), (2, [1]), (8, [1, 3]), (10, [1, 3]), (20, [2, 6]), (30, [3, 9])]
)
def test_two_rungs_well_before_the_full_length(epochs: int, rungs: list[int]) -> None:
    assert sorted(RebuiltASHA(epochs, {}).rungs()) == rungs
    assert grace_epochs(epochs) == (rungs or [1])[0]


def test_rebuilt_rungs_decide_as_the_lost_ones() -> None:
    generator = np.random.default_rng(0)
    epochs = 9
    curves = [list(np.sort(generator.uniform(0.3, 1.0, epochs))) for _ in range(30)]
    whole = RebuiltASHA(epochs, {})
    stopped = [feed(whole, number, curve) for number, curve in enumerate(curves)]
    assert any(stopped)
    assert not all(stopped)
    for cut in (1, 7, 19):
        ended = {
            number: {e: curves[number][e - 1] for e in range(1, (stopped[number] or epochs) + 1)}
            for number in range(cut)
        }
        rest = RebuiltASHA(epochs, ended)
        later = [feed(rest, number, curves[number]) for number in range(cut, 30)]
        assert later == stopped[cut:]
        assert rest.rungs() == whole.rungs()


def whole_and_cut(last: dict[int, float]) -> tuple[RebuiltASHA, list[int], RebuiltASHA]:
    """Run four trials; and begin a session that knows two, and of the others what they told."""
    whole = RebuiltASHA(5, {})
    stopped = [feed(whole, number, curve) for number, curve in enumerate(CURVES)]
    known = {number: dict(enumerate(CURVES[number], start=1)) for number in (0, 1)}
    return whole, stopped, RebuiltASHA(5, {**known, 2: {1: 0.2}, 3: last})


CURVES = [
    [0.5, 0.6, 0.7, 0.7, 0.8],
    [0.9, 0.9, 0.9, 0.9, 0.9],
    [0.2] * 5,
    [0.95, 0.96, 0.4, 1, 1],
]


@pytest.mark.parametrize("first", [1, 2])
def test_an_unfinished_trial_stands_where_it_stood(first: int) -> None:
    """Cut off after its first epoch was told, or after the second one's checkpoint."""
    whole, stopped, rest = whole_and_cut({1: 0.95})
    assert feed(rest, 3, CURVES[3], reported=1, first=first, session="two") == stopped[3]
    assert rest.rungs() == whole.rungs()


def test_what_was_told_but_not_decided_is_decided_later() -> None:
    whole, stopped, rest = whole_and_cut({1: 0.95})
    assert stopped[2] == 1
    assert feed(rest, 2, CURVES[2], reported=1, session="two") == 1
    assert feed(rest, 3, CURVES[3], reported=1, session="two") == stopped[3]
    assert rest.rungs() == whole.rungs()


def test_a_trial_that_goes_on_in_the_same_session_has_one_place() -> None:
    whole = RebuiltASHA(5, {})
    for number, curve in enumerate(CURVES):
        feed(whole, number, curve[:2] if number == 3 else curve)
    before = whole.rungs()
    feed(whole, 3, CURVES[3], reported=2, first=2, session="another worker")
    assert whole.rungs() == before
