"""A time budget on a simulated clock: the whole run ends in time, and uses the time it has."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from search.tuning.time_budget import (
    MAX_BASELINE,
    MAX_HEAD_TRIALS,
    MAX_MISSING,
    MAX_MORE_PROBES,
    MAX_RESERVED,
    MIN_EPOCHS,
    TRIALS_PLANNED,
    TimeBudget,
)
from search.tuning.timing.after_trials import (
    CLOSING_SECONDS,
    FOLD_SECONDS,
    FORWARD_FRACTION,
    SAMPLE_PASSES,
    AfterTrials,
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
N_ROUNDS = 3
"""Of 5 folds, 2 in parallel."""


def predicted_seconds(depth: int) -> float:
    """Return the seconds of an epoch by the measured throughput; at depth 5 they are none."""
    return N_TRAIN * sum(SECONDS_PER_IMAGE[depth:]) or 0.05


def make(
    seconds: float,
    clock: Clock,
    finalists: int = 1,
    scheduler: str = "none",
    n_evaluated: int = 0,
    probes: dict[str, float] | None = None,
) -> TimeBudget:
    space = Space(
        source=folder(),
        params={
            "backbone": "tinynet",
            "lr": FloatDistribution(1e-4, 1e-2, log=True),
            "freeze_depth": IntDistribution(0, 5),
            "scheduler": scheduler,
        },
        epochs=EPOCHS,
        folds=FOLDS,
    )
    growth = fold_growth(N_TRAIN, 200, FOLDS)
    after_trials = AfterTrials(
        space,
        N_TRAIN,
        growth,
        lambda _: SLOTS,
        probes or {},
        n_evaluated,
        {"tinynet": SECONDS_PER_IMAGE},
        bool(probes),
    )
    return TimeBudget(
        seconds,
        lambda: clock.now,
        space,
        finalists,
        after_trials,
        N_TRAIN,
        probes=list(probes or {}),
    )


def epoch(number: int, accuracy: float, seconds: float) -> TrialResult:
    return TrialResult(
        epoch=number,
        best_epoch=number,
        best_val_score=accuracy,
        trained_seconds=seconds * number,
    )


@dataclass
class Simulated:
    """A run on a simulated clock: `SLOTS` trials in parallel, then as many folds.

    Attributes:
        budget: Plans it.
        clock: Its time.
        factor: Seconds of an epoch, over those that the measured throughput predicts.
        lengths: Of the trials that were begun, with their freeze depths.
        scores: By number, of the complete ones, with the epochs of their folds.
        folds: By number, how many folds were trained.
    """

    budget: TimeBudget
    clock: Clock
    factor: float
    lengths: list[tuple[int, int]] = field(default_factory=list)
    scores: dict[int, tuple[float, int]] = field(default_factory=dict)
    folds: dict[int, int] = field(default_factory=dict)

    def epoch_seconds(self, number: int) -> float:
        return self.factor * predicted_seconds(self.lengths[number][0])

    def search(self) -> None:
        """Run trials until the time is up, of any depth that there is time for."""
        generator = np.random.default_rng(1)
        running: list[tuple[float, int, int, float]] = []
        while not self.budget.is_up():
            while len(running) < SLOTS:
                number, by_depth = len(self.lengths), self.budget.lengths("tinynet")
                depth = int(generator.choice(list(by_depth)))
                self.lengths.append((depth, by_depth[depth]))
                self.budget.trial_started(number, {"freeze_depth": depth})
                score = float(generator.uniform(0.5, 1.0))
                ends = self.clock.now + self.epoch_seconds(number)
                heapq.heappush(running, (ends, number, 1, score))
            self.clock.now, number, at, score = heapq.heappop(running)
            cost = self.epoch_seconds(number)
            result = epoch(at, score, cost)
            self.budget.trial_epoch(number, result)
            if at == self.lengths[number][1]:
                self.scores[number] = score, at
                self.budget.trial_ended(number, "complete", result)
            else:
                heapq.heappush(running, (self.clock.now + cost, number, at + 1, score))

    def cross_validate(self, finalists: int = 1) -> None:
        """Retrain the probe, the best trials, the baseline, and more while there is time."""
        self.clock.now += N_ROUNDS * FOLD_SECONDS
        ranked = sorted(self.scores, key=lambda number: -self.scores[number][0])
        chosen = ranked[:finalists]
        fine_tuned = [number for number in ranked if self.lengths[number][0] < 5]
        chosen += [number for number in fine_tuned[:1] if number not in chosen]
        if 0 in self.scores and 0 not in chosen and not self.budget.skips_baseline():
            chosen.append(0)
        for number in (*chosen, *ranked[finalists : 2 * finalists]):
            is_for_comparison = number == 0 and bool(self.folds)
            all_folds = number not in chosen or is_for_comparison
            has_time = self.budget.has_time_for_folds(number, all_folds=all_folds)
            if number not in self.folds and has_time:
                self.retrain(number)
        self.clock.now += CLOSING_SECONDS

    def retrain(self, number: int) -> None:
        """Train folds as `search.pipeline.retraining.kfold.retrain` does."""
        fold = FOLD_SECONDS + self.scores[number][1] * self.epoch_seconds(number)
        n_done = 0
        while n_done < FOLDS and (n_done == 0 or fold <= self.budget.seconds_left(n_done + 1)):
            n_done += min(SLOTS, FOLDS - n_done)
            self.clock.now += fold
        self.folds[number] = n_done


def test_runs_end_in_time_and_use_it() -> None:
    """Whatever the time, the finalists, and how far the measured throughput is off."""
    used = []
    for seconds, finalists, factor in itertools.product((120, 300), (1, 2), (0.6, 1.0, 1.5)):
        clock = Clock(5.0)
        run = Simulated(make(seconds, clock, finalists), clock, factor)
        run.search()
        run.cross_validate(finalists)
        assert run.scores
        assert run.folds
        assert 0.85 * seconds <= clock.now <= seconds, (seconds, finalists, factor)
        used.append(clock.now / seconds)
    assert np.mean(used) >= 0.93


def test_a_trial_that_has_nearly_ended_is_waited_for() -> None:
    clock = Clock()
    budget = make(1000, clock)
    for number in (0, 1):
        budget.trial_started(number, {"freeze_depth": 3})
    for at in range(1, EPOCHS + 1):
        budget.trial_epoch(0, epoch(at, 0.8, 1.0))
    budget.trial_ended(0, "complete", TrialResult(best_epoch=EPOCHS))
    clock.now = 1000 - budget.reserved_seconds() + 0.1
    assert budget.is_up(), "nothing else runs"
    waited_from = EPOCHS - int(MAX_MISSING * EPOCHS)
    for at in range(1, EPOCHS + 1):
        budget.trial_epoch(1, epoch(at, 0.7, 1.0))
        assert budget.is_up() == (at < waited_from)
    fold = FOLD_SECONDS + EPOCHS * fold_growth(N_TRAIN, 200, FOLDS)
    clock.now = 1000 - N_ROUNDS * FOLD_SECONDS - CLOSING_SECONDS - fold + 0.1
    assert budget.is_up(), "there is no time for the first of its folds"
    budget.trial_ended(1, "complete", TrialResult(best_epoch=EPOCHS))
    assert budget.is_up()


def test_what_is_reserved_follows_from_what_trials_took() -> None:
    clock = Clock()
    budget = make(1000, clock)
    none_yet = N_ROUNDS * FOLD_SECONDS + CLOSING_SECONDS
    assert budget.reserved_seconds() == none_yet
    budget.trial_started(0, {})
    budget.trial_epoch(0, epoch(1, 0.8, 2.0))
    assert budget.reserved_seconds() == none_yet + N_ROUNDS * (FOLD_SECONDS + EPOCHS * 2.0)
    budget.trial_ended(0, "complete", TrialResult(best_epoch=4))
    first = N_ROUNDS * (FOLD_SECONDS + 4 * 2.0)
    assert budget.reserved_seconds() == none_yet + first
    budget.trial_started(1, {})
    budget.trial_epoch(1, epoch(1, 0.7, 9.0))
    assert budget.reserved_seconds() == none_yet + first, "it would be no finalist"
    budget.trial_epoch(1, epoch(2, 0.9, 9.0))
    assert budget.reserved_seconds() == none_yet + first, "it still runs, as there was time for it"
    budget.trial_ended(1, "pruned", TrialResult())
    assert budget.reserved_seconds() == none_yet + first
    budget.trial_started(2, {})
    budget.trial_epoch(2, epoch(3, 0.9, 3.0))
    budget.trial_ended(2, "complete", TrialResult(best_epoch=5))
    better = N_ROUNDS * (FOLD_SECONDS + 5 * 3.0)
    assert budget.reserved_seconds() == none_yet + better + first, "the baseline is compared with"
    first += better
    assert budget.reserved_seconds() == none_yet + first
    clock.now = 1000 - none_yet - first - 1
    assert not budget.is_up()
    clock.now += 2
    assert budget.is_up()


def test_most_of_the_budget_is_never_reserved() -> None:
    budget = make(100, Clock())
    budget.trial_started(0, {})
    budget.trial_epoch(0, epoch(1, 0.8, 50.0))
    closing = N_ROUNDS * FOLD_SECONDS + CLOSING_SECONDS
    assert budget.reserved_seconds() == MAX_RESERVED * (100 - CLOSING_SECONDS) + closing


def test_no_trial_is_proposed_that_there_is_no_time_for() -> None:
    """A trial and its first folds end in time; where none would, the head alone is trained."""
    closing = N_ROUNDS * FOLD_SECONDS + CLOSING_SECONDS
    for seconds in (20, 30, 60, 120, 200, 300, 500):
        allowed = make(seconds, Clock(7.0)).lengths("tinynet")
        assert 5 in allowed
        for depth in set(allowed) - {5}:
            training = allowed[depth] * predicted_seconds(depth)
            first_folds = FOLD_SECONDS + training  # a fold has 800 images, too
            assert training + first_folds + closing + 7.0 <= seconds
    assert list(make(2000, Clock()).lengths("tinynet")) == [0, 1, 2, 3, 4, 5]
    assert list(make(20, Clock(7.0)).lengths("tinynet")) == [5]


def test_trials_are_as_long_as_leaves_time_for_some_of_them_and_the_folds_of_one() -> None:
    for seconds, depths in ((60, [3, 4, 5]), (120, [2, 3, 4, 5]), (500, [0, 1, 2, 3, 4, 5])):
        lengths = make(seconds, Clock()).lengths("tinynet")
        left = seconds - CLOSING_SECONDS - N_ROUNDS * FOLD_SECONDS
        n_trainings = TRIALS_PLANNED / SLOTS + N_ROUNDS  # a fold trains on as many images
        fitting = [left // (n_trainings * predicted_seconds(depth)) for depth in range(5)]
        planned = [depth for depth in range(5) if fitting[depth] >= MIN_EPOCHS]
        assert list(lengths) == [*planned, 5] == depths
        assert all(lengths[depth] == min(EPOCHS, fitting[depth]) for depth in planned)


def test_the_head_alone_is_trained_eight_times_while_there_is_time_for_more() -> None:
    for seconds, depths in ((1000, [0, 1, 2, 3, 4]), (15, [5])):
        budget = make(seconds, Clock())
        for number in range(MAX_HEAD_TRIALS):
            assert 5 in budget.lengths("tinynet")
            budget.trial_started(number, {"freeze_depth": 5})
        assert list(budget.lengths("tinynet")) == depths


def test_a_length_stays_as_it_was_chosen() -> None:
    """However little time is left, and however slow trials turn out to be."""
    clock = Clock()
    budget = make(500, clock)
    before = budget.lengths("tinynet")
    budget.trial_started(0, {"freeze_depth": 0})
    budget.trial_epoch(0, epoch(1, 0.8, 3 * predicted_seconds(0)))
    clock.now = 200.0
    after = budget.lengths("tinynet")
    assert after.items() < before.items(), "the slowest depths are left out"


def test_a_resumed_run_keeps_the_lengths_of_its_trials() -> None:
    budget, study = make(10_000, Clock()), optuna.create_study(direction="maximize")
    distributions = {"freeze_depth": IntDistribution(0, 5)}
    for depth, length in ((0, 7), (3, None)):
        study.add_trial(
            create_trial(
                params={"freeze_depth": depth},
                distributions=distributions,
                value=0.9,
                intermediate_values={1: 0.9},
                user_attrs={
                    "best": {"epoch": 1, "val_score": 0.9, "val_accuracy": 0.9, "val_loss": 0.1},
                    "seconds": predicted_seconds(depth),
                    **({} if length is None else {"epochs": length}),
                },
            )
        )
    budget.catch_up(study)
    assert budget.lengths("tinynet") == {0: 7, 1: 10, 2: 10, 3: 10, 4: 10, 5: 10}
    clock = Clock()
    tight = make(300, clock)
    tight.catch_up(study)
    assert tight.lengths("tinynet")[0] == 7, "it would be 5"


def test_observed_times_correct_the_expected_ones() -> None:
    budget = make(200, Clock())
    before = budget.lengths("tinynet")
    budget.trial_started(0, {"freeze_depth": 3})
    expected = predicted_seconds(3)
    budget.trial_epoch(0, epoch(1, 0.8, expected))
    assert budget.lengths("tinynet") == before
    budget.trial_epoch(0, epoch(1, 0.8, 5 * expected))
    slower = budget.lengths("tinynet")
    assert min(slower) > min(before)
    # One that trains less of the network tells less; one that trains nothing, nothing.
    for number, depth in ((1, 4), (2, 5)):
        budget.trial_started(number, {"freeze_depth": depth})
        budget.trial_epoch(number, epoch(1, 0.1, 100 * expected))
        assert budget.lengths("tinynet") == slower


def test_whether_there_is_time_for_all_folds() -> None:
    clock = Clock()
    budget = make(100, clock)
    budget.trial_started(3, {"freeze_depth": 0})
    budget.trial_epoch(3, epoch(1, 0.8, 2.0))
    folds = N_ROUNDS * (FOLD_SECONDS + MIN_EPOCHS * 2.0)
    clock.now = 100 - CLOSING_SECONDS - folds
    assert budget.seconds_left() == folds
    assert budget.has_time_for_folds(3)
    clock.now += 0.01
    assert not budget.has_time_for_folds(3)
    assert budget.has_time_for_folds(None), "a linear probe takes hardly any"


def test_folds_of_a_cosine_schedule_take_all_its_epochs() -> None:
    for scheduler, epochs in (("cosine", EPOCHS), ("none", 4)):
        budget = make(1000, Clock(), scheduler=scheduler)
        budget.trial_started(0, {"freeze_depth": 0})
        budget.trial_epoch(0, epoch(1, 0.8, 2.0))
        budget.trial_ended(0, "complete", TrialResult(best_epoch=4))
        closing = N_ROUNDS * FOLD_SECONDS + CLOSING_SECONDS
        assert budget.reserved_seconds() == closing + N_ROUNDS * (FOLD_SECONDS + epochs * 2.0)


def test_a_slow_baseline_that_is_not_the_best_is_not_retrained() -> None:
    budget = make(1000, Clock())
    closing = N_ROUNDS * FOLD_SECONDS + CLOSING_SECONDS
    assert not budget.skips_baseline()
    slow = MAX_BASELINE * 1000 / (N_ROUNDS * EPOCHS)  # of which FOLD_SECONDS are too many
    budget.trial_started(0, {"freeze_depth": 0})
    budget.trial_epoch(0, epoch(1, 0.8, slow))
    budget.trial_started(1, {"freeze_depth": 4})
    budget.trial_epoch(1, epoch(1, 0.9, 0.1))
    best = N_ROUNDS * (FOLD_SECONDS + EPOCHS * 0.1)
    assert budget.skips_baseline()
    assert budget.reserved_seconds() == closing + best
    budget.trial_epoch(0, epoch(2, 0.95, slow))
    first = N_ROUNDS * (FOLD_SECONDS + EPOCHS * slow)
    assert budget.reserved_seconds() == closing + first, "the best is worth it"
    budget.trial_epoch(0, epoch(2, 0.8, 0.9 * slow))
    assert not budget.skips_baseline()
    assert budget.reserved_seconds() == pytest.approx(
        closing + best + N_ROUNDS * (FOLD_SECONDS + EPOCHS * 0.9 * slow)
    )


def test_time_is_reserved_for_the_best_fine_tuned_trial_beside_the_best() -> None:
    budget = make(1000, Clock())
    for number, depth, accuracy in ((1, 5, 0.9), (2, 3, 0.8), (3, 2, 0.7)):
        budget.trial_started(number, {"freeze_depth": depth})
        budget.trial_epoch(number, epoch(1, accuracy, float(number)))
    folds = sum(N_ROUNDS * (FOLD_SECONDS + EPOCHS * seconds) for seconds in (1.0, 2.0))
    assert budget.reserved_seconds() == folds + N_ROUNDS * FOLD_SECONDS + CLOSING_SECONDS


def test_evaluation_is_reserved_for_by_what_it_computes() -> None:
    """Five members of the trained stages and one of the frozen, forward alone; and samples."""
    alone, evaluated = make(1000, Clock()), make(1000, Clock(), n_evaluated=600)
    for budget in (alone, evaluated):
        budget.trial_started(0, {"freeze_depth": 3})
        budget.trial_epoch(0, epoch(1, 0.8, 2.0))
    per_image = sum(SECONDS_PER_IMAGE[:3]) + FOLDS * sum(SECONDS_PER_IMAGE[3:])
    per_image += (600 + SAMPLE_PASSES) / 600 * sum(SECONDS_PER_IMAGE)
    seconds = 600 * FORWARD_FRACTION * per_image
    assert evaluated.reserved_seconds() - alone.reserved_seconds() == pytest.approx(seconds)
    assert alone.seconds_left() - evaluated.seconds_left() == pytest.approx(seconds)
    fewer = 600 * FORWARD_FRACTION * (FOLDS - 2) * sum(SECONDS_PER_IMAGE[3:])
    assert evaluated.seconds_left(2) - evaluated.seconds_left() == pytest.approx(fewer)


def test_heads_take_the_time_in_which_nothing_else_can_be_trained() -> None:
    clock = Clock()
    budget = make(1000, clock)
    for number in range(MAX_HEAD_TRIALS):
        assert 5 in budget.lengths("tinynet")
        budget.trial_started(number, {"freeze_depth": 5})
    assert 5 not in budget.lengths("tinynet")
    clock.now = 1000 - CLOSING_SECONDS - 5
    assert set(budget.lengths("tinynet")) == {5}


def test_more_probes_are_finalists_where_they_cost_little() -> None:
    """The best one always is; each other needs its folds, and its part of the evaluation."""
    probes = {"tinynet": 0.02, "second": 0.02, "slow": 0.2, "third": 0.01}
    needed = 2 * N_ROUNDS * FOLD_SECONDS + 100 * (0.02 + 0.01)
    enough, few = (
        make(seconds, Clock(), n_evaluated=100, probes=probes)
        for seconds in (needed / MAX_MORE_PROBES + 1, needed / MAX_MORE_PROBES - 1)
    )
    assert enough.probes == ["tinynet", "second", "third"]
    assert few.probes == ["tinynet", "second"]
    alone = make(1000, Clock(), n_evaluated=100, probes={"tinynet": 0.02})
    together = make(1000, Clock(), n_evaluated=100, probes=probes)
    assert together.probes == list(probes)
    more = 3 * N_ROUNDS * FOLD_SECONDS + 100 * (0.02 + 0.2 + 0.01)
    assert together.reserved_seconds() - alone.reserved_seconds() == pytest.approx(more)


def test_no_trial_begins_in_the_time_that_the_folds_of_a_running_one_need() -> None:
    """Once that one has ended, its folds are reserved, and the other would be cut off."""
    clock = Clock()
    budget = make(1000, clock)
    budget.trial_started(0, {"freeze_depth": 5})
    budget.trial_epoch(0, epoch(1, 0.5, 0.05))
    budget.trial_ended(0, "complete", TrialResult(best_epoch=1))
    length = budget.lengths("tinynet")[0]
    budget.trial_started(1, {"freeze_depth": 0})
    budget.trial_epoch(1, epoch(1, 0.9, 8.4))
    folds = N_ROUNDS * (FOLD_SECONDS + length * 8.4 * fold_growth(N_TRAIN, 200, FOLDS))
    clock.now = 1000 - folds - length * 8.4
    assert 0 not in budget.lengths("tinynet")
    clock.now -= CLOSING_SECONDS + N_ROUNDS * FOLD_SECONDS + 10  # for the folds of the baseline
    assert 0 in budget.lengths("tinynet")
    budget.trial_ended(1, "complete", TrialResult(best_epoch=length))
    assert 0 in budget.lengths("tinynet"), "as before it ended"
