"""A time budget on a simulated clock: the whole run ends in time, and uses the time it has."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from search.tuning.time_budget import (
    CENTER_CROP_FRACTION,
    CLOSING_SECONDS,
    FOLD_SECONDS,
    MAX_BASELINE,
    MAX_RESERVED,
    TimeBudget,
    fold_growth,
)
from spaces.base import Space
from spaces.sources import folder
from trainables.trial_result import TrialResult

EPOCHS, FOLDS, SLOTS = 10, 5, 2


@dataclass
class Clock:
    now: float = 0.0


N_TRAIN = 800
SECONDS_PER_IMAGE = (0.004, 0.003, 0.002, 0.001, 0.0005)
"""Seconds that an image takes to train each stage: 8.4 per epoch for all, 0.4 for the last."""


def make(seconds: float, clock: Clock, finalists: int = 1, has_probe: bool = False) -> TimeBudget:
    space = Space(
        source=folder(),
        params={
            "backbone": "tinynet",
            "lr": FloatDistribution(1e-4, 1e-2, log=True),
            "freeze_depth": IntDistribution(0, 5),
        },
        epochs=EPOCHS,
        folds=FOLDS,
    )
    growth = fold_growth(N_TRAIN, 200, FOLDS)
    return TimeBudget(
        seconds,
        lambda: clock.now,
        space,
        finalists,
        lambda _: SLOTS,
        growth,
        {"tinynet": SECONDS_PER_IMAGE},
        N_TRAIN,
        has_probe,
    )


def epoch(number: int, accuracy: float, seconds: float) -> TrialResult:
    return TrialResult(
        epoch=number,
        best_epoch=number,
        best_val_score=accuracy,
        trained_seconds=seconds * number,
    )


def simulate(seconds: float, finalists: int, epoch_seconds: list[float]) -> tuple[float, float]:
    """Run trials one after the other, then folds; return when the search and the run ended."""
    clock, generator = Clock(5.0), np.random.default_rng(1)
    budget = make(seconds, clock, finalists)
    complete: list[tuple[float, float]] = []
    first_cost = 0.0
    for number in itertools.count():
        cost = epoch_seconds[number % len(epoch_seconds)]
        accuracy = float(generator.uniform(0.5, 1.0))
        budget.trial_started(number, {})
        for at in range(1, EPOCHS + 1):
            clock.now += cost
            if budget.is_up():
                break
            budget.trial_epoch(number, epoch(at, accuracy, cost))
        if budget.is_up():
            break
        first_cost = first_cost or cost
        complete.append((accuracy, cost))
        budget.trial_ended(number, "complete", epoch(EPOCHS, accuracy, cost))
    searched = clock.now
    costs = [cost for _, cost in sorted(complete, reverse=True)[:finalists]]
    is_finalist = complete and complete[0] in sorted(complete, reverse=True)[:finalists]
    if complete and not is_finalist and not budget.skips_baseline():
        costs.append(first_cost)
    rounds = -(-FOLDS // SLOTS)
    clock.now += sum(rounds * (FOLD_SECONDS + EPOCHS * cost) for cost in costs)
    clock.now += rounds * FOLD_SECONDS + CLOSING_SECONDS
    return searched, clock.now


@pytest.mark.parametrize(
    ("seconds", "finalists", "epoch_seconds"),
    [
        (120, 1, [0.05]),
        (120, 1, [0.3, 0.05, 0.6]),
        (1800, 1, [2.0, 0.1, 5.0, 8.0]),
        (1800, 3, [2.0, 0.1, 5.0, 3.0]),
        (7200, 2, [30.0, 1.0, 12.0]),
    ],
)
def test_the_run_ends_in_time_and_uses_it(
    seconds: float, finalists: int, epoch_seconds: list[float]
) -> None:
    searched, ended = simulate(seconds, finalists, epoch_seconds)
    longest = max(epoch_seconds)
    assert ended <= 1.02 * seconds + longest
    assert searched >= (1 - MAX_RESERVED) * seconds
    if len(set(epoch_seconds)) == 1:  # nothing slower could have come: no time is wasted
        assert ended >= 0.9 * seconds


def test_what_is_reserved_follows_from_what_trials_took() -> None:
    clock = Clock()
    budget = make(1000, clock)
    rounds = 3  # of 5 folds, 2 in parallel
    none_yet = rounds * FOLD_SECONDS + CLOSING_SECONDS
    assert budget.reserved_seconds() == none_yet
    budget.trial_started(0, {})
    budget.trial_epoch(0, epoch(1, 0.8, 2.0))
    assert budget.reserved_seconds() == none_yet + rounds * (FOLD_SECONDS + EPOCHS * 2.0)
    budget.trial_ended(0, "complete", TrialResult(best_epoch=4))
    first = rounds * (FOLD_SECONDS + 4 * 2.0)
    assert budget.reserved_seconds() == none_yet + first
    budget.trial_started(1, {})
    budget.trial_epoch(1, epoch(1, 0.7, 9.0))
    assert budget.reserved_seconds() == none_yet + first, "it would be no finalist"
    budget.trial_epoch(1, epoch(2, 0.9, 9.0))
    slower = rounds * (FOLD_SECONDS + EPOCHS * 9.0)
    assert budget.reserved_seconds() == none_yet + first + slower
    budget.trial_ended(1, "pruned", TrialResult())
    assert budget.reserved_seconds() == none_yet + first
    clock.now = 1000 - none_yet - first - 1
    assert not budget.is_up()
    clock.now += 2
    assert budget.is_up()


def test_most_of_the_budget_is_never_reserved() -> None:
    budget = make(100, Clock())
    budget.trial_started(0, {})
    budget.trial_epoch(0, epoch(1, 0.8, 50.0))
    assert budget.reserved_seconds() == MAX_RESERVED * 100


def test_no_trial_is_proposed_that_there_is_no_time_for() -> None:
    """Whatever depth is allowed, the trial and its folds end in time; one less would not."""
    rounds = 3  # of 5 folds, 2 in parallel
    closing = rounds * FOLD_SECONDS + CLOSING_SECONDS
    for seconds in (20, 60, 120, 200, 300, 500):
        clock = Clock(7.0)
        allowed = make(seconds, clock).min_freeze_depth("tinynet")

        def whole(depth: int) -> float:
            epoch_seconds = N_TRAIN * sum(SECONDS_PER_IMAGE[depth:])
            folds = rounds * (FOLD_SECONDS + EPOCHS * epoch_seconds)  # each on 800 images, too
            return EPOCHS * epoch_seconds + folds + closing + 7.0

        assert allowed == next((depth for depth in range(5) if whole(depth) <= seconds), 5)
    assert make(500, Clock()).min_freeze_depth("tinynet") == 0
    assert make(20, Clock(7.0)).min_freeze_depth("tinynet") == 5


def test_observed_times_correct_the_expected_ones() -> None:
    clock = Clock()
    budget = make(200, clock)
    before = budget.min_freeze_depth("tinynet")
    budget.trial_started(0, {"freeze_depth": 3})
    expected = N_TRAIN * sum(SECONDS_PER_IMAGE[3:])
    budget.trial_epoch(0, epoch(1, 0.8, expected))
    assert budget.min_freeze_depth("tinynet") == before
    budget.trial_epoch(0, epoch(1, 0.8, 3 * expected))
    slower = budget.min_freeze_depth("tinynet")
    assert slower > before
    # One that trains less of the network tells less; one that trains nothing, nothing.
    for number, depth in ((1, 4), (2, 5)):
        budget.trial_started(number, {"freeze_depth": depth})
        budget.trial_epoch(number, epoch(1, 0.8, 100 * expected))
        assert budget.min_freeze_depth("tinynet") == slower


def test_a_slow_baseline_that_is_not_the_best_is_not_retrained() -> None:
    budget = make(1000, Clock())
    rounds = 3  # of 5 folds, 2 in parallel
    closing = rounds * FOLD_SECONDS + CLOSING_SECONDS
    assert not budget.skips_baseline()
    slow = MAX_BASELINE * 1000 / (rounds * EPOCHS)  # of which FOLD_SECONDS are too many
    budget.trial_started(0, {"freeze_depth": 0})
    budget.trial_epoch(0, epoch(1, 0.8, slow))
    budget.trial_started(1, {"freeze_depth": 5})
    budget.trial_epoch(1, epoch(1, 0.9, 0.1))
    best = rounds * (FOLD_SECONDS + EPOCHS * 0.1)
    assert budget.skips_baseline()
    assert budget.reserved_seconds() == closing + best
    budget.trial_epoch(0, epoch(2, 0.95, slow))
    first = rounds * (FOLD_SECONDS + EPOCHS * slow)
    assert budget.reserved_seconds() == closing + first, "the best is worth it"
    budget.trial_epoch(0, epoch(2, 0.8, 0.9 * slow))
    assert not budget.skips_baseline()
    assert budget.reserved_seconds() == pytest.approx(
        closing + best + rounds * (FOLD_SECONDS + EPOCHS * 0.9 * slow)
    )


def test_trials_whose_folds_would_take_too_long_are_no_finalists() -> None:
    """Nothing is reserved for them, so the search continues; unless there is no other."""
    rounds = 3  # of 5 folds, 2 in parallel
    closing = rounds * FOLD_SECONDS + CLOSING_SECONDS
    slow = MAX_RESERVED * 1000 / (rounds * EPOCHS)  # of which FOLD_SECONDS are too many
    for has_probe in (True, False):
        crop = CENTER_CROP_FRACTION * 1000 * sum(SECONDS_PER_IMAGE) / SLOTS if has_probe else 0.0
        budget = make(1000, Clock(), has_probe=has_probe)
        budget.trial_started(1, {"freeze_depth": 0})
        budget.trial_epoch(1, epoch(1, 0.9, slow))
        assert budget.too_slow() == ({1} if has_probe else set())
        reserved = closing + crop if has_probe else MAX_RESERVED * 1000
        assert budget.reserved_seconds() == reserved
        budget.trial_started(2, {"freeze_depth": 5})
        budget.trial_epoch(2, epoch(1, 0.8, 0.1))
        assert budget.too_slow() == {1}
        best = rounds * (FOLD_SECONDS + EPOCHS * 0.1)
        assert budget.reserved_seconds() == pytest.approx(closing + crop + best)
        # Its best epoch was an early one: its folds are short.
        budget.trial_ended(1, "complete", TrialResult(best_epoch=EPOCHS // 2))
        assert budget.too_slow() == set()
