"""Stop trials early by asynchronous successive halving (ASHA, arXiv 1810.05934), resumably.

At each rung, a fraction of a trial's full length, only the best third of the trials that have come
as far continues. Ray's own scheduler knows a trial by the worker session that runs it and cannot
take over results; this one knows it by its number in the study, and rebuilds the rungs from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from search.tuning.ranking import ranking_value
from trainables.trial_result import TrialResult

REDUCTION_FACTOR = 3
_CUTOFF_PERCENTILE = 100 * (1 - 1 / REDUCTION_FACTOR)


def rung_epochs(epochs: int) -> list[int]:
    """Return the epochs after which ASHA decides, ascending, given a trial's full length.

    8 epochs have rungs at 2 and 3; 20 have them at 2 and 6. After one epoch a trial is still much
    the linear probe that it began with, so those of six epochs and more have no rung there. A rung
    in the second half would save little, and cost a nearly finished trial.
    """
    third = epochs // REDUCTION_FACTOR
    first = max(1, min(2, third), third // REDUCTION_FACTOR)
    second = max(first + 1, third)
    return [first] * (epochs > 1) + [second] * (2 * second < epochs)


class NoEarlyStopping(FIFOScheduler):
    """Run every trial to its full length."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Name no trial, so that Tune starts all pending ones as it finds workers for them.

        Ray's schedulers name the oldest pending trial. Tune then gives it the worker that another
        trial has left, and gives up the new one that is starting for it: while trials end more
        often than a worker takes to start, a machine that joins would never get a trial.
        """


class ResumableASHA(NoEarlyStopping):
    """Stop trials that are not among the best third at a rung, as Ray's ASHA does.

    Trials are compared by their best epoch so far; see `search.tuning.ranking`. A trial has one
    place at a rung: where it is continued, in a later session or after its worker was lost, its
    last epoch is reported once more and decided again, since the break may have come between the
    report and the decision.
    """

    def __init__(
        self, curves: Mapping[int, Mapping[int, float]], lengths: Mapping[int, int]
    ) -> None:
        """Set the rungs up.

        Args:
            curves: By number, the ranking value of each epoch of the study's trials.
            lengths: By number, their full lengths in epochs.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs: tuple[dict[int, float], ...] = ({}, {})
        for number, curve in curves.items():
            for values, rung in zip(self._rungs, rung_epochs(lengths[number]), strict=False):
                if rung in curve:
                    values[number] = max(v for epoch, v in curve.items() if epoch <= rung)

    @property
    def rungs(self) -> Sequence[Mapping[int, float]]:
        """Of each rung, the first comes first, the ranking values there, by trial number."""
        return self._rungs

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide on an epoch: CONTINUE, or STOP below the cutoff of a rung."""
        reported, number = TrialResult.from_dict(result), trial.config["number"]
        rungs = rung_epochs(trial.config["epochs"])
        if reported.epoch not in rungs:
            return self.CONTINUE
        values = self._rungs[rungs.index(reported.epoch)]
        values.pop(number, None)
        others = list(values.values())
        value = ranking_value(reported.best_val_score, reported.best_val_loss)
        values[number] = value
        is_below = bool(others) and value < np.percentile(others, _CUTOFF_PERCENTILE)
        return self.STOP if is_below else self.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial whose last epoch is a rung's."""
        self.on_trial_result(tune_controller, trial, result)
