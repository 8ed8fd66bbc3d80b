"""A time budget: trials go on until what is left is what folds and evaluation will take.

And none is begun that there is no time for: it is frozen deeper, which is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from search.pipeline.retraining.center_crop import uses_center_crop
from search.tuning.study import BASELINE_TRIAL, SECONDS, STATES, best_epoch, best_value
from spaces.base import Space, TrialConfig

FOLD_SECONDS = 1.0
"""What a fold takes besides its epochs: a worker, weights, the probe's head, predictions."""

LOOK_FRACTION = 1 / 3
"""Of the time that an image takes to train all of a network: what a second look at it takes."""

CLOSING_SECONDS = 12.0
"""Evaluation, boards and report of a small set, measured on two cores."""

MAX_RESERVED = 0.6
"""Of the budget: a trial whose folds would take longer than this is no finalist, unless it is all
there is; then it is worth the delay."""

MAX_COMPARED = 0.2
"""Of the budget: what the first trial's folds may take where it is there to be compared with."""


@dataclass(frozen=True)
class TrialCost:
    """A trial that may become a finalist.

    Attributes:
        accuracy: Its best so far, in validation.
        epochs: That its folds would train.
        epoch_seconds: Mean over its epochs.
        backbone: Its backbone.
    """

    accuracy: float
    epochs: int
    epoch_seconds: float
    backbone: str


class TimeBudget:
    """Listens to trials, and says when the search must end for the whole run to end in time.

    The finalists would be the best trials of now, those among them that are still running taken
    at their full length; besides them the probe, and the first trial if its folds are no delay.
    """

    def __init__(
        self,
        seconds: float,
        elapsed: Callable[[], float],
        space: Space,
        n_finalists: int,
        places: Callable[[str], int],
        growth: float,
        paces: Mapping[str, Sequence[float]],
        n_train: int,
        has_probe: bool,
    ) -> None:
        """Begin.

        Args:
            seconds: The budget, from the command to the last page of the report.
            elapsed: Says how many seconds have gone.
            space: What is searched.
            n_finalists: Trials that are retrained by k-fold.
            places: Says how many folds of a backbone run at a time.
            growth: Images that a fold trains on, over those that a trial does.
            paces: See `search.tuning.throughput.measure_throughput`.
            n_train: Images that a trial trains on.
            has_probe: Whether the probe is a finalist.
        """
        self._seconds = seconds
        self._elapsed = elapsed
        self._space = space
        self._n_finalists = n_finalists
        self._places = places
        self._growth = growth
        self._paces = paces
        self._n_train = n_train
        self._has_probe = has_probe
        self._costs: dict[int, TrialCost] = {}
        self._kinds: dict[int, tuple[str, int]] = {}
        self._seen: dict[str, tuple[float, float]] = {}

    def catch_up(self, study: optuna.Study) -> None:
        """Take in the trials of earlier sessions."""
        for trial in study.get_trials(deepcopy=False):
            if trial.state in STATES and SECONDS in trial.user_attrs:
                self.trial_started(trial.number, trial.params)
                seconds = trial.user_attrs[SECONDS] / len(trial.intermediate_values)
                self._see(trial.number, best_value(trial), best_epoch(trial), seconds)
                ended = STATES[trial.state]
                self.trial_ended(trial.number, ended, {"best_epoch": best_epoch(trial)})

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """See `search.tuning.tune.TrialCallback`."""
        full = {**self._space.constants, **params}
        depth = int(full.get("freeze_depth", TrialConfig.freeze_depth))
        self._kinds[number] = str(full["backbone"]), depth

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """See `search.tuning.tune.TrialCallback`."""
        seconds = result["trained_seconds"] / result["epoch"]
        self._see(number, result["best_val_accuracy"], self._space.epochs, seconds)

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """See `search.tuning.tune.TrialCallback`."""
        cost = self._costs.get(number)
        if cost is None:
            return
        if state == "complete":
            self._costs[number] = replace(cost, epochs=result["best_epoch"])
        elif state == "pruned" and number == BASELINE_TRIAL:
            # It is retrained at its full length, but is no rival to the full-length trials.
            self._costs[number] = replace(cost, accuracy=-math.inf)
        else:
            del self._costs[number]

    def is_up(self) -> bool:
        """Say whether no trial may go on."""
        return self._elapsed() + self.reserved_seconds() > self._seconds

    def min_freeze_depth(self, backbone: str) -> int:
        """Return the least depth at which a trial, and its folds should it win, would end in time.

        5, at which no stage is trained, is always allowed.
        """
        left = self._seconds - self._elapsed() - self._closing_seconds({backbone})
        if self._is_compared():
            left -= self._folds_seconds(self._costs[BASELINE_TRIAL])
        for depth in range(5):
            cost = TrialCost(0.0, self._space.epochs, self._expected(backbone, depth), backbone)
            if cost.epochs * cost.epoch_seconds + self._folds_seconds(cost) <= left:
                return depth
        return 5

    def reserved_seconds(self) -> float:
        """Return what folds, evaluation and report are expected to take."""
        able = self._costs.keys() - self.too_slow()
        ranked = sorted(able, key=lambda number: -self._costs[number].accuracy)
        finalists = {
            *ranked[: self._n_finalists],
            *([BASELINE_TRIAL] if self._is_compared() else []),
        }
        folds = sum(self._folds_seconds(self._costs[number]) for number in finalists)
        closing = self._closing_seconds({self._costs[number].backbone for number in finalists})
        return min(folds + closing, MAX_RESERVED * self._seconds)

    def too_slow(self) -> set[int]:
        """Return the trials whose folds would take too much of the budget."""
        most = MAX_RESERVED * self._seconds
        slow = {n for n, cost in self._costs.items() if self._folds_seconds(cost) > most}
        return slow if self._has_probe or slow < self._costs.keys() else set()

    def leaves_first_out(self) -> bool:
        """Say whether there is no time to retrain the first trial just to compare with it."""
        return BASELINE_TRIAL in self._costs and not self._is_compared()

    def __getstate__(self) -> dict[str, object]:
        """Save nothing: Tune pickles what it runs with, and nobody carries on from that."""
        return {}

    def _see(self, number: int, accuracy: float, epochs: int, epoch_seconds: float) -> None:
        backbone, depth = self._kinds[number]
        self._costs[number] = TrialCost(accuracy, epochs, epoch_seconds, backbone)
        measured = self._measured(backbone, depth)
        # The more of the network is trained, the more the trial tells of all the others.
        if measured > 0 and measured >= self._seen.get(backbone, (0.0, 0.0))[0]:
            self._seen[backbone] = measured, epoch_seconds

    def _expected(self, backbone: str, depth: int) -> float:
        """Return the seconds that an epoch of a trial may take, by what was seen so far."""
        measured, seen = self._seen.get(backbone, (1.0, 1.0))
        return self._measured(backbone, depth) * seen / measured

    def _measured(self, backbone: str, depth: int) -> float:
        return self._n_train * sum(self._paces[backbone][depth:])

    def _closing_seconds(self, backbones: Collection[str]) -> float:
        """Return what the probe's folds, second looks, evaluation and report take."""
        probed = self._space.backbones[0]  # whichever it will be
        looks = sum(self._look_seconds(backbone) for backbone in {probed, *backbones})
        return self._rounds(probed) * FOLD_SECONDS + looks + CLOSING_SECONDS

    def _look_seconds(self, backbone: str) -> float:
        """Return what looking at all images of the folds again takes."""
        n = self._n_train * self._growth * self._space.folds / (self._space.folds - 1)
        if not uses_center_crop(self._space, n) or not self._has_probe:
            return 0.0
        return LOOK_FRACTION * n * sum(self._paces[backbone]) / max(1, self._places(backbone))

    def _is_compared(self) -> bool:
        first = self._costs.get(BASELINE_TRIAL)
        return first is not None and self._folds_seconds(first) <= MAX_COMPARED * self._seconds

    def _folds_seconds(self, cost: TrialCost) -> float:
        epoch_seconds = cost.epoch_seconds * self._growth
        return self._rounds(cost.backbone) * (FOLD_SECONDS + cost.epochs * epoch_seconds)

    def _rounds(self, backbone: str) -> int:
        return math.ceil(self._space.folds / max(1, self._places(backbone)))


def fold_growth(n_train: int, n_val: int, folds: int) -> float:
    """Return the images that a fold trains on over those that a trial does."""
    return (n_train + n_val) * (folds - 1) / folds / max(1, n_train)
