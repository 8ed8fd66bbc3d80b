"""Estimate how long the rest of a run takes, from the seconds that its epochs were seen to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from time import monotonic

import numpy as np

from search.tuning.study import BASELINE_TRIAL
from search.tuning.time_budget import MAX_DEPTH
from search.tuning.timing.after_trials import CLOSING_SECONDS, AfterTrials, Kind
from spaces.base import Space
from spaces.rules import Value
from trainables.trial_result import TrialResult
from trainables.worker import resolve_config

_PACE_PRIOR = 0.2
"""Fraction of a part that is taken to have gone as expected, so that its begin decides little."""

TRIALS, FOLDS, CLOSING = "trials", "cross-validation", "evaluation and report"
"""The parts of what is left."""

Finalists = Sequence[tuple[int | None, int]]
"""Each finalist's trial, None for a linear probe, and the epochs of its folds."""


@dataclass(frozen=True)
class Budget:
    """A time budget as the estimate sees it.

    Attributes:
        left: Returns the seconds that are left of it.
        reserved: Returns those that it reserves for what follows the trials.
    """

    left: Callable[[], float]
    reserved: Callable[[], float]


@dataclass
class _Trial:
    """What is known of a trial: how far it is, and what it took."""

    backbone: str
    depth: int
    epoch: int = 0
    seconds: float = 0.0
    score: float = math.nan
    is_running: bool = True

    @property
    def epoch_seconds(self) -> float:
        return self.seconds / self.epoch


class TimeLeft:
    """Estimates the seconds until the end of the run; a `trial_events.TrialCallback`.

    A trial is worth its epochs times the seconds of an epoch of its backbone at its freeze depth;
    trials that have not begun take what those before them took in the mean, pruned ones included.
    Cross-validation takes the folds of the trials that would be finalists now.
    """

    def __init__(
        self,
        space: Space,
        n_trials: int | None,
        slots: Callable[[], int],
        after_trials: AfterTrials,
        n_finalists: int = 1,
        probes: Sequence[str] = (),
        budget: Budget | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """Start with no trial.

        Args:
            space: What is searched.
            n_trials: Trials that are still to run; None is as many as there is time for.
            slots: Returns how many trainings run in parallel.
            after_trials: Estimates what follows the trials.
            n_finalists: Trials that are retrained by k-fold cross-validation.
            probes: Backbones of the linear probes that are finalists, the best first.
            budget: The time budget; None without one.
            now: Returns the time in seconds.
        """
        self._space = space
        self._n_trials = n_trials
        self._slots = slots
        self._after = after_trials
        self._n_finalists = n_finalists
        self._probes = probes
        self._budget = budget
        self._now = now
        self._updated = now()
        self._trials: dict[int, _Trial] = {}
        self._finalists: Finalists | None = None
        self._n_folds_done = 0
        self._trials_began = self._folds_began = 0.0
        self._is_closing = False

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        config = resolve_config(self._space.complete(params))
        self._trials[number] = _Trial(config.backbone, config.freeze_depth)

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        if not any(trial.epoch for trial in self._trials.values()):
            # The first trial also waits for its worker, which is there for those after it.
            self._trials_began = self._now() - result.trained_seconds
        trial = self._trials[number]
        trial.epoch, trial.seconds = result.epoch, result.trained_seconds
        trial.score = result.best_val_score
        self._updated = self._now()

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        if number in self._trials:
            self._trials[number].is_running = False
        self._updated = self._now()

    def begin_folds(self, finalists: Finalists) -> None:
        """Begin cross-validation: the finalists, each a trial or None for a probe, and epochs."""
        self._finalists, self._n_folds_done = finalists, 0
        self._updated = self._folds_began = self._now()

    def begin_closing(self) -> None:
        """Begin what follows cross-validation."""
        self._is_closing, self._updated = True, self._now()

    def parts(self, n_folds_done: int = 0) -> dict[str, float]:
        """Return the seconds left by what they are for; nothing before the first epoch.

        Args:
            n_folds_done: Folds that have ended, of the finalists one after the other.
        """
        if self._finalists is not None and n_folds_done != self._n_folds_done:
            self._n_folds_done, self._updated = n_folds_done, self._now()
        since = self._now() - self._updated
        closing = self._closing_seconds()
        if self._is_closing:
            return {CLOSING: max(1.0, closing - since)}
        if self._finalists is not None:
            bound = math.inf if self._budget is None else self._budget.left()
            folds = min(self._folds_left() - since, bound - closing)
            return {FOLDS: max(1.0, folds), CLOSING: closing}
        if not any(trial.epoch for trial in self._trials.values()):
            return {}
        return {
            TRIALS: max(1.0, self._trials_left(since)),
            FOLDS: self._expected_folds(closing),
            CLOSING: closing,
        }

    def _expected_folds(self, closing: float) -> float:
        """Return the seconds of cross-validation, before its finalists are known."""
        reserved = math.inf if self._budget is None else max(0.0, self._budget.reserved() - closing)
        if self._n_trials is None:  # trials end when what is reserved is left
            return reserved
        finalists = self._likely_finalists()
        seconds = sum(self._folds_seconds(*finalist) for finalist in finalists)
        # Folds for which there is no time are left out.
        return min(seconds + self._crops_seconds(finalists), reserved)

    def _crops_seconds(self, finalists: Finalists) -> float:
        """Return the seconds of the finalists' centre crops."""
        backbones = {backbone for backbone, _ in self._kinds(finalists)}
        return sum(self._after.center_crop_seconds(backbone) for backbone in backbones)

    def _closing_seconds(self) -> float:
        """Return the seconds of evaluation, boards and report."""
        finalists = self._likely_finalists() if self._finalists is None else self._finalists
        baseline = self._trials.get(BASELINE_TRIAL)
        others = [one for one in finalists if one[0] != BASELINE_TRIAL]
        is_compared = baseline is not None and len(others) < len(finalists)
        compared = (baseline.backbone, baseline.depth) if baseline and is_compared else None
        kinds = self._kinds(others or finalists)
        return CLOSING_SECONDS + (self._after.evaluation_seconds(kinds, compared) if kinds else 0.0)

    def _kinds(self, finalists: Finalists) -> set[Kind]:
        """Return backbone and freeze depth of finalists."""
        trials = [self._trials[number] for number, _ in finalists if number in self._trials]
        return {
            *((trial.backbone, trial.depth) for trial in trials),
            *((name, MAX_DEPTH) for name in self._probes[:1]),
        }

    def _trials_left(self, since: float) -> float:
        """Return the seconds that trials still take; `since` is the time since the last event."""
        budget = self._budget
        by_budget = math.inf if budget is None else budget.left() - budget.reserved()
        if self._n_trials is None:
            return by_budget
        running = [trial for trial in self._trials.values() if trial.is_running]
        rests = [max(0.0, self._total(trial) - trial.seconds) for trial in running]
        n_waiting = max(0, self._n_trials - len(self._trials))
        work = sum(rests) + n_waiting * mean(map(self._total, self._trials.values()))
        in_parallel = max(1, min(self._slots(), len(running) + n_waiting))
        left = max([*rests, work / in_parallel])
        done = sum(trial.seconds for trial in self._trials.values()) / max(1, self._slots())
        took = self._updated - self._trials_began
        return min(by_budget, left * _pace(took, done, done + left) - since)

    def _total(self, trial: _Trial) -> float:
        """Return the seconds of a trial from its first epoch to its last."""
        if not trial.is_running:
            return trial.seconds
        ended = [one.epoch for one in self._trials.values() if not one.is_running and one.epoch]
        # Most trials are pruned: one that has begun is expected to train as many epochs as others.
        expected = mean([*ended, self._space.epochs]) if ended else self._space.epochs
        epochs = max(expected, (trial.epoch + self._space.epochs) / 2 if trial.epoch else 0)
        return min(epochs, self._space.epochs) * self._epoch_seconds(trial.backbone, trial.depth)

    def _epoch_seconds(self, backbone: str, depth: int) -> float:
        """Return the seconds of an epoch, interpolated between the freeze depths that were seen."""
        seen = [trial for trial in self._trials.values() if trial.epoch]
        own = [trial for trial in seen if trial.backbone == backbone] or seen
        by_depth: dict[int, list[float]] = {}
        for trial in own:
            by_depth.setdefault(trial.depth, []).append(trial.epoch_seconds)
        depths = sorted(by_depth)
        return float(np.interp(depth, depths, [mean(by_depth[one]) for one in depths]))

    def _likely_finalists(self) -> list[tuple[int | None, int]]:
        """Return the probes, the best trials, the best fine-tuned one and the baseline."""
        ranked = sorted(
            (number for number, trial in self._trials.items() if trial.epoch),
            key=lambda number: (-self._trials[number].score, number),
        )
        tuned = [number for number in ranked if self._trials[number].depth < MAX_DEPTH]
        chosen = [*ranked[: self._n_finalists], *tuned[:1]]
        if BASELINE_TRIAL in ranked:
            chosen.append(BASELINE_TRIAL)
        trials = [(number, self._space.epochs) for number in dict.fromkeys(chosen)]
        return [*((None, 0) for _ in self._probes), *trials]

    def _folds_seconds(self, number: int | None, epochs: int) -> float:
        """Return the seconds of a finalist's folds."""
        trial = None if number is None else self._trials.get(number)
        if trial is None:
            backbone = next(iter(self._probes), self._space.backbones[0])
            return self._after.folds_seconds(backbone, 0, 0.0)
        seconds = self._epoch_seconds(trial.backbone, trial.depth)
        return self._after.folds_seconds(trial.backbone, epochs, seconds)

    def _folds_left(self) -> float:
        """Return the seconds of the folds that have not ended, at the pace of those that have."""
        finalists = self._finalists or ()
        expected = [self._folds_seconds(*finalist) for finalist in finalists]
        n_whole, n_more = divmod(self._n_folds_done, self._space.folds)
        done = sum(expected[:n_whole])
        if n_more and n_whole < len(expected):
            done += expected[n_whole] * n_more / self._space.folds
        left = sum(expected) - done
        took = self._updated - self._folds_began
        # A probe's folds take a moment: only trained ones tell of the pace.
        trained = sum(number is not None for number, _ in finalists[: n_whole + bool(n_more)])
        left += self._crops_seconds(finalists) * left / max(sum(expected), 1e-9)
        if not (done and trained and took):
            return left
        return left * _pace(took, done, sum(expected))


def _pace(took: float, done: float, expected: float) -> float:
    """Return how many times longer a part takes than expected, by what is done of it.

    Args:
        took: Seconds that it has taken.
        done: Seconds that this was expected to take.
        expected: Seconds that all of it was expected to take: the less of it is done, the less it
            tells of the rest.
    """
    prior = _PACE_PRIOR * expected
    return (took + prior) / (done + prior) if done + prior > 0 else 1.0
