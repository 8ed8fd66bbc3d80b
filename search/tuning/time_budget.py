"""Plan a run that has a time budget: how long trials are, how deep they freeze, when they end.

Trials run until what is left of the time is what cross-validation and evaluation are expected to
take. The length of a trial is chosen before it begins, so that its learning rate falls to the end
of its schedule: as many epochs as leave time for some trials like it and for its folds. Where even
the shortest would not end in time, the trial is frozen deeper, which trains faster. The module is
long because each of these decisions rests on the same estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna

from search.tuning.study import (
    BASELINE_TRIAL,
    SECONDS,
    STATES,
    best_epoch,
    retrain_epochs,
    trial_length,
)
from search.tuning.timing.after_trials import CLOSING_SECONDS, FOLD_SECONDS, AfterTrials
from spaces.base import Space, TrialConfig
from spaces.rules import Value
from trainables.trial_result import TrialResult
from trainables.worker import resolve_config

MAX_RESERVED = 0.5
"""Fraction of the time left when the search begins that is reserved at most for folds. Where those
of the best trial would take longer, it is retrained on fewer of them."""

MAX_RESERVED_FOR_MORE = 0.35
"""Fraction of the budget that is reserved at most so that other trials are finalists, too."""

MIN_EPOCHS = 5
"""Epochs of the shortest trial, unless the space's own are fewer."""

MAX_HEAD_TRIALS = 8
"""Trials of the head alone while there is time for others: they cost little, and soon are as good
as they get. Where there is no time for others, heads take what is left."""

TRIALS_PLANNED = 8
"""When the length of trials of one backbone at one freeze depth is chosen, so many of them are to
fit into the time left, beside the folds of one."""

MAX_MISSING = 0.5
"""Fraction of a trial's epochs that it may still have to train to be waited for."""

MAX_MORE_PROBES = 0.1
"""Fraction of the budget that the linear probes beside the best one may take, as finalists and in
the evaluation of a model that has them as parts."""

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
        after_trials: AfterTrials,
        n_train: int,
        probes: Sequence[str],
    ) -> None:
        """Start with no trial.

        Args:
            seconds: The budget, from the command to the last page of the report.
            elapsed: Returns how many seconds have passed.
            space: What is searched.
            n_finalists: Trials that are retrained by k-fold cross-validation.
            after_trials: Estimates what follows the trials, by the measured throughput.
            n_train: Images that a trial trains on.
            probes: Backbones of the linear probes that may be finalists, the best first.
        """
        self._seconds = seconds
        self._seconds_at_start = max(0.0, seconds - elapsed() - CLOSING_SECONDS)
        self._elapsed = elapsed
        self._space = space
        self._n_finalists = n_finalists
        self._after = after_trials
        self._n_train = n_train
        self._probes = self._affordable(probes)
        self._costs: dict[int, TrialCost] = {}
        self._configs: dict[int, TrialConfig] = {}
        self._epochs: dict[int, int] = {}  # that each trial has trained
        self._ended: set[int] = set()
        self._fitting: dict[tuple[str, int], int] = {}  # epochs, by backbone and freeze depth
        # By backbone: the seconds of an epoch as predicted and as seen, of the trial that trained
        # the largest part of it.
        self._observed: dict[str, tuple[float, float]] = {}

    def catch_up(self, study: optuna.Study) -> None:
        """Take in the trials of earlier sessions."""
        for trial in study.get_trials(deepcopy=False):
            has_seconds = SECONDS in trial.user_attrs and trial.intermediate_values
            if trial.state in STATES and has_seconds:
                self.trial_started(trial.number, trial.params)
                config = self._configs[trial.number]
                key = config.backbone, config.freeze_depth
                self._fitting[key] = trial_length(trial, self._space)
                seconds = trial.user_attrs[SECONDS] / len(trial.intermediate_values)
                best = best_epoch(trial)
                self._epochs[trial.number] = len(trial.intermediate_values)
                self._observe(trial.number, best.val_score, seconds)
                result = TrialResult(best_epoch=best.epoch)
                self.trial_ended(trial.number, STATES[trial.state], result)

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._configs[number] = resolve_config(self._space.complete(params))

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self._epochs[number] = result.epoch
        seconds = result.trained_seconds / result.epoch
        self._observe(number, result.best_val_score, seconds)

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        cost = self._costs.get(number)
        if cost is None:
            return
        self._ended.add(number)
        if state == "complete":
            epochs = retrain_epochs(self._configs[number], cost.epochs, result.best_epoch)
            self._costs[number] = replace(cost, epochs=epochs)
        elif state == "pruned" and number == BASELINE_TRIAL:
            # It is retrained at its full length, but does not compete with complete trials.
            self._costs[number] = replace(cost, score=-math.inf)
        else:
            del self._costs[number]

    @property
    def probes(self) -> list[str]:
        """Backbones of the linear probes that there is time to retrain, the best first."""
        return list(self._probes)

    def _affordable(self, probes: Sequence[str]) -> dict[str, float]:
        """Return the seconds of folds and evaluation of the best probe, and of others in time."""
        affordable: dict[str, float] = {}
        for name in probes:
            needed = self._after.rounds(name) * FOLD_SECONDS + self._after.probe_seconds(name)
            others = sum(list(affordable.values())[1:])
            if not affordable or others + needed <= MAX_MORE_PROBES * self._seconds:
                affordable[name] = needed
        return affordable

    def is_up(self) -> bool:
        """Return whether the time left is needed for cross-validation and evaluation.

        A trial that is half done is waited for, as long as there is time for it and the first
        of its folds: without its end all of it would be lost.
        """
        if self._elapsed() + self.reserved_seconds() <= self._seconds:
            return False
        return not any(self._is_waited_for(number) for number in self._costs.keys() - self._ended)

    def _is_waited_for(self, number: int) -> bool:
        """Return whether a trial that runs may end, though the time for trials is up."""
        cost, config = self._costs[number], self._configs[number]
        missing = cost.epochs - self._epochs[number]
        if missing > MAX_MISSING * cost.epochs:
            return False
        folds = self._folds_seconds(cost) / self._after.rounds(cost.backbone)
        closing = self._closing_seconds({(config.backbone, config.freeze_depth)})
        needed = missing * cost.epoch_seconds + folds + closing
        return self._elapsed() + needed <= self._seconds

    def lengths(self, backbone: str) -> dict[int, int]:
        """Return the freeze depths that there is time to train, with the epochs of a trial.

        Some trials and the folds of one are to end in time: see `TRIALS_PLANNED`. Where there is no
        time for that below `MAX_DEPTH`, one trial and the first of its folds will do. `MAX_DEPTH`
        is there until `MAX_HEAD_TRIALS` have begun, and where nothing else is.
        """
        searched = [depth for depth in self._space.freeze_depths if depth < MAX_DEPTH]
        fitting = [depth for depth in searched if self._fits(backbone, depth)]
        planned = [depth for depth in fitting if self._is_planned(backbone, depth)]
        depths = planned or fitting[-1:]
        if self._n_heads() < MAX_HEAD_TRIALS or not depths:
            depths = [*depths, MAX_DEPTH]
        return {depth: self._length(backbone, depth) for depth in depths}

    def _n_heads(self) -> int:
        """Count the trials so far that train the head alone."""
        return sum(config.freeze_depth == MAX_DEPTH for config in self._configs.values())

    def _fits(self, backbone: str, depth: int) -> bool:
        """Return whether a trial and the first of its folds would end in time."""
        epochs, seconds = self._length(backbone, depth), self._expected(backbone, depth)
        folds = self._folds_seconds(TrialCost(0.0, epochs, seconds, backbone))
        reserved = self._reserved_for_folds(self._costs.keys())
        needed = max(folds / self._after.rounds(backbone), reserved)
        closing = self._closing_seconds({(backbone, depth), *self._likely_kinds()})
        return epochs * seconds + needed + closing <= self._seconds - self._elapsed()

    def reserved_seconds(self) -> float:
        """Return what cross-validation, evaluation and report are expected to take."""
        return self._reserved_for_folds() + self._closing_seconds(self._likely_kinds())

    def has_time_for_folds(self, number: int | None, all_folds: bool = True) -> bool:
        """Return whether the folds of a trial, or of the linear probe, would end in time.

        Args:
            number: The trial's number; None for the probe.
            all_folds: Whether all of them, or only those that run in parallel first.
        """
        cost = None if number is None else self._costs.get(number)
        if cost is None:
            return True
        if all_folds:
            return self._folds_seconds(cost) <= self.seconds_left()
        n_first = min(self._space.folds, self._after.slots(cost.backbone))
        seconds = self._folds_seconds(cost) / self._after.rounds(cost.backbone)
        return seconds <= self.seconds_left(n_first)

    def seconds_left(self, n_folds: int | None = None) -> float:
        """Return the seconds that are left before evaluation and report have to begin.

        Args:
            n_folds: Folds of a fine-tuned model that is evaluated; None is all of them.
        """
        evaluation = self._evaluation_seconds(self._likely_kinds(), n_folds)
        return self._seconds - self._elapsed() - CLOSING_SECONDS - evaluation

    def skips_baseline(self) -> bool:
        """Return whether there is no time to retrain the baseline only to compare with it."""
        return BASELINE_TRIAL in self._costs and not self._retrains_baseline()

    def __getstate__(self) -> dict[str, object]:
        """Save nothing: Tune pickles what it runs with, and a run is resumed from its study."""
        return {}

    def _likely_finalists(self, known: Collection[int] | None = None) -> list[int]:
        """Return the best trial, the best fine-tuned one, and others if they cost little.

        Args:
            known: Of these trials; None is those that have ended, once there are any, since one
                that runs was begun because it fits.
        """
        if known is None:
            known = self._costs.keys() & self._ended or self._costs.keys()
        ranked = sorted(known, key=lambda number: (-self._costs[number].score, number))
        fine_tuned = [n for n in ranked if self._configs[n].freeze_depth < MAX_DEPTH]
        finalists = list(dict.fromkeys([*ranked[:1], *fine_tuned[:1]]))
        if self._retrains_baseline() and BASELINE_TRIAL not in finalists:
            finalists.append(BASELINE_TRIAL)
        seconds = sum(self._folds_seconds(self._costs[number]) for number in finalists)
        for number in ranked[1 : self._n_finalists]:
            seconds += self._folds_seconds(self._costs[number])
            if number not in finalists and seconds <= MAX_RESERVED_FOR_MORE * self._seconds:
                finalists.append(number)
        return finalists

    def _likely_kinds(self) -> set[tuple[str, int]]:
        """Return backbone and freeze depth of the likely finalists, a linear probe among them."""
        configs = [self._configs[number] for number in self._likely_finalists()]
        probed = next(iter(self._probes), self._space.backbones[0])
        return {(probed, MAX_DEPTH), *((one.backbone, one.freeze_depth) for one in configs)}

    def _reserved_for_folds(self, known: Collection[int] | None = None) -> float:
        """Return what the folds of the likely finalists take; see `_likely_finalists`."""
        finalists = self._likely_finalists(known)
        seconds = sum(self._folds_seconds(self._costs[number]) for number in finalists)
        return min(seconds, MAX_RESERVED * self._seconds_at_start)

    def _length(self, backbone: str, depth: int) -> int:
        """Return the epochs of trials at a depth."""
        fitting = self._fitting_epochs(backbone, depth)
        return max(self._shortest, min(self._space.epochs, fitting))

    def _is_planned(self, backbone: str, depth: int) -> bool:
        """Return whether there was time for `TRIALS_PLANNED` trials when they were planned."""
        return self._fitting_epochs(backbone, depth) >= self._shortest

    @property
    def _shortest(self) -> int:
        return min(MIN_EPOCHS, self._space.epochs)

    def _fitting_epochs(self, backbone: str, depth: int) -> int:
        """Return how many epochs fit, chosen when the first trial at a depth is planned."""
        if (backbone, depth) not in self._fitting:
            rounds = self._after.rounds(backbone)
            left = self.seconds_left() - rounds * FOLD_SECONDS
            n_trainings = TRIALS_PLANNED / self._after.slots(backbone) + rounds * self._after.growth
            seconds = max(self._expected(backbone, depth) * n_trainings, 1e-9)
            self._fitting[backbone, depth] = math.floor(left / seconds)
        return self._fitting[backbone, depth]

    def _observe(self, number: int, score: float, epoch_seconds: float) -> None:
        backbone, depth = self._configs[number].backbone, self._configs[number].freeze_depth
        epochs = self._length(backbone, depth)
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
        return self._n_train * sum(self._after.stage_seconds(backbone)[depth:])

    def _closing_seconds(self, kinds: Collection[tuple[str, int]]) -> float:
        """Return what the probe's folds, centre crops, evaluation and report take.

        Args:
            kinds: Backbone and freeze depth of each model that may be evaluated.
        """
        crops = sum(
            self._after.center_crop_seconds(backbone) for backbone in {kind[0] for kind in kinds}
        )
        evaluation = self._evaluation_seconds(kinds)
        probe = self._after.rounds(self._space.backbones[0]) * FOLD_SECONDS
        return probe + crops + evaluation + CLOSING_SECONDS

    def _evaluation_seconds(
        self, kinds: Collection[tuple[str, int]], n_folds: int | None = None
    ) -> float:
        """Return what the model takes to be evaluated, one finalist or several together.

        Heat maps, the measured cost and the features of TensorBoard's projector are part of it, and
        the baseline that it is compared with. Linear probes beside the best one have theirs with
        their folds.
        """
        baseline = self._configs.get(BASELINE_TRIAL)
        is_best = self._likely_finalists()[:1] == [BASELINE_TRIAL]
        compared = None
        if baseline is not None and not is_best and self._retrains_baseline():
            compared = baseline.backbone, baseline.freeze_depth
        more_probes = list(self._probes.values())[1:]
        return self._after.evaluation_seconds(kinds, compared, more_probes, n_folds)

    def _retrains_baseline(self) -> bool:
        cost = self._costs.get(BASELINE_TRIAL)
        return cost is not None and self._folds_seconds(cost) <= MAX_BASELINE * self._seconds

    def _folds_seconds(self, cost: TrialCost) -> float:
        return self._after.folds_seconds(cost.backbone, cost.epochs, cost.epoch_seconds)
