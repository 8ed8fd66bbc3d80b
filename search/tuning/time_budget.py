"""Keep a run within its time budget: when to end the search, and how deep to freeze backbones.

Trials run until what is left of the time is what cross-validation and evaluation are expected to
take. A trial that would not end in time is frozen deeper, which trains faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna

from search.tuning.study import BASELINE_TRIAL, SECONDS, STATES, best_epoch
from spaces.base import Space, TrialConfig
from spaces.rules import Value
from trainables.models.linear_probe import uses_center_crop
from trainables.trial_result import TrialResult

FOLD_SECONDS = 1.0
"""Seconds of a fold besides its epochs: a worker, weights, the probe's head, predictions."""

CENTER_CROP_FRACTION = 1 / 3
"""Seconds that the centre-crop branch takes per image, over those of training a whole network."""

CLOSING_SECONDS = 12.0
"""Seconds of evaluation, boards and report of a small set, measured on two cores."""

MAX_RESERVED = 0.6
"""Fraction of the budget that is reserved at most. A trial whose folds would take longer is no
finalist, unless there is no other; then it is worth the delay."""

MAX_BASELINE = 0.2
"""Fraction of the budget that the baseline's folds may take where it is retrained only to be
compared with."""

MAX_DEPTH = 5
"""Freeze depth at which no stage is trained."""


@dataclass(frozen=True)
class TrialCost:
    """What a trial would cost as a finalist.

    Attributes:
        score: Its best validation score so far.
        epochs: Epochs that its folds would train.
        epoch_seconds: Mean over its epochs.
        backbone: Its backbone.
    """

    score: float
    epochs: int
    epoch_seconds: float
    backbone: str


class TimeBudget:
    """Plan with the time that trials were seen to take; a `trial_events.TrialCallback`.

    The finalists are expected to be the best trials so far, those that still run at their full
    length; besides them the linear probe, and the baseline if its folds cost little.
    """

    def __init__(
        self,
        seconds: float,
        elapsed: Callable[[], float],
        space: Space,
        n_finalists: int,
        slots: Callable[[str], int],
        growth: float,
        seconds_per_image: Mapping[str, Sequence[float]],
        n_train: int,
        has_probe: bool,
    ) -> None:
        """Start with no trial.

        Args:
            seconds: The budget, from the command to the last page of the report.
            elapsed: Returns how many seconds have passed.
            space: What is searched.
            n_finalists: Trials that are retrained by k-fold cross-validation.
            slots: Returns how many folds of a backbone run in parallel.
            growth: See `fold_growth`.
            seconds_per_image: See `search.tuning.throughput.measure_throughput`.
            n_train: Images that a trial trains on.
            has_probe: Whether the linear probe is a finalist.
        """
        self._seconds = seconds
        self._elapsed = elapsed
        self._space = space
        self._n_finalists = n_finalists
        self._slots = slots
        self._growth = growth
        self._seconds_per_image = seconds_per_image
        self._n_train = n_train
        self._has_probe = has_probe
        self._costs: dict[int, TrialCost] = {}
        self._configs: dict[int, tuple[str, int]] = {}  # by trial: its backbone and freeze depth
        # By backbone: the seconds of an epoch as predicted and as seen, of the trial that trained
        # the largest part of it.
        self._observed: dict[str, tuple[float, float]] = {}

    def catch_up(self, study: optuna.Study) -> None:
        """Take in the trials of earlier sessions."""
        for trial in study.get_trials(deepcopy=False):
            if trial.state in STATES and SECONDS in trial.user_attrs:
                self.trial_started(trial.number, trial.params)
                seconds = trial.user_attrs[SECONDS] / len(trial.intermediate_values)
                best = best_epoch(trial)
                self._observe(trial.number, best.val_score, best.epoch, seconds)
                result = TrialResult(best_epoch=best.epoch)
                self.trial_ended(trial.number, STATES[trial.state], result)

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        full = {**self._space.constants, **params}
        depth = int(full.get("freeze_depth", TrialConfig.freeze_depth))
        self._configs[number] = str(full["backbone"]), depth

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        seconds = result.trained_seconds / result.epoch
        self._observe(number, result.best_val_score, self._space.epochs, seconds)

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        cost = self._costs.get(number)
        if cost is None:
            return
        if state == "complete":
            self._costs[number] = replace(cost, epochs=result.best_epoch)
        elif state == "pruned" and number == BASELINE_TRIAL:
            # It is retrained at its full length, but does not compete with complete trials.
            self._costs[number] = replace(cost, score=-math.inf)
        else:
            del self._costs[number]

    def is_up(self) -> bool:
        """Return whether the time left is needed for cross-validation and evaluation."""
        return self._elapsed() + self.reserved_seconds() > self._seconds

    def min_freeze_depth(self, backbone: str) -> int:
        """Return the least depth at which a trial and its folds, should it win, end in time.

        `MAX_DEPTH` is always allowed.
        """
        left = self._seconds - self._elapsed() - self._closing_seconds({backbone})
        if self._retrains_baseline():
            left -= self._folds_seconds(self._costs[BASELINE_TRIAL])
        for depth in range(MAX_DEPTH):
            cost = TrialCost(0.0, self._space.epochs, self._expected(backbone, depth), backbone)
            if cost.epochs * cost.epoch_seconds + self._folds_seconds(cost) <= left:
                return depth
        return MAX_DEPTH

    def reserved_seconds(self) -> float:
        """Return what cross-validation, evaluation and report are expected to take."""
        able = self._costs.keys() - self.too_slow()
        ranked = sorted(able, key=lambda number: -self._costs[number].score)
        finalists = set(ranked[: self._n_finalists])
        if self._retrains_baseline():
            finalists.add(BASELINE_TRIAL)
        folds = sum(self._folds_seconds(self._costs[number]) for number in finalists)
        closing = self._closing_seconds({self._costs[number].backbone for number in finalists})
        return min(folds + closing, MAX_RESERVED * self._seconds)

    def too_slow(self) -> set[int]:
        """Return the trials whose folds would take too much of the budget."""
        limit = MAX_RESERVED * self._seconds
        slow = {n for n, cost in self._costs.items() if self._folds_seconds(cost) > limit}
        return slow if self._has_probe or slow < self._costs.keys() else set()

    def skips_baseline(self) -> bool:
        """Return whether there is no time to retrain the baseline only to compare with it."""
        return BASELINE_TRIAL in self._costs and not self._retrains_baseline()

    def __getstate__(self) -> dict[str, object]:
        """Save nothing: Tune pickles what it runs with, and a run is resumed from its study."""
        return {}

    def _observe(self, number: int, score: float, epochs: int, epoch_seconds: float) -> None:
        backbone, depth = self._configs[number]
        self._costs[number] = TrialCost(score, epochs, epoch_seconds, backbone)
        predicted = self._predicted(backbone, depth)
        # The more of the network a trial trains, the more it tells about all the others.
        if predicted > 0 and predicted >= self._observed.get(backbone, (0.0, 0.0))[0]:
            self._observed[backbone] = predicted, epoch_seconds

    def _expected(self, backbone: str, depth: int) -> float:
        """Return the seconds that an epoch may take, corrected by what was observed so far."""
        predicted, seen = self._observed.get(backbone, (1.0, 1.0))
        return self._predicted(backbone, depth) * seen / predicted

    def _predicted(self, backbone: str, depth: int) -> float:
        """Return the seconds of an epoch by the measured throughput."""
        return self._n_train * sum(self._seconds_per_image[backbone][depth:])

    def _closing_seconds(self, backbones: Collection[str]) -> float:
        """Return what the probe's folds, centre crops, evaluation and report take."""
        probed = self._space.backbones[0]  # whichever it will be
        crops = sum(self._center_crop_seconds(backbone) for backbone in {probed, *backbones})
        return self._rounds(probed) * FOLD_SECONDS + crops + CLOSING_SECONDS

    def _center_crop_seconds(self, backbone: str) -> float:
        """Return what the centre-crop branch takes for all images of the folds."""
        n = self._n_train * self._growth * self._space.folds / (self._space.folds - 1)
        if not uses_center_crop(self._space, n) or not self._has_probe:
            return 0.0
        per_image = CENTER_CROP_FRACTION * sum(self._seconds_per_image[backbone])
        return n * per_image / max(1, self._slots(backbone))

    def _retrains_baseline(self) -> bool:
        cost = self._costs.get(BASELINE_TRIAL)
        return cost is not None and self._folds_seconds(cost) <= MAX_BASELINE * self._seconds

    def _folds_seconds(self, cost: TrialCost) -> float:
        epoch_seconds = cost.epoch_seconds * self._growth
        return self._rounds(cost.backbone) * (FOLD_SECONDS + cost.epochs * epoch_seconds)

    def _rounds(self, backbone: str) -> int:
        """Return how often as many folds as there are slots run one after the other."""
        return math.ceil(self._space.folds / max(1, self._slots(backbone)))


def fold_growth(n_train: int, n_val: int, folds: int) -> float:
    """Return the images that a fold trains on, over those that a trial does."""
    return (n_train + n_val) * (folds - 1) / folds / max(1, n_train)
