"""Stop trials early by asynchronous successive halving (ASHA, arXiv 1810.05934), resumably.

At each rung, a fraction of a trial's full length, only the best third of the trials that have come
as far continues. Ray's own scheduler knows a trial by the worker session that runs it and cannot
take over results; this one knows it by its number in the study, and rebuilds the rungs from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from search.tuning.ranking import ranking_value
from trainables.models.network_cut import N_STAGES
from trainables.trial_result import TrialResult
from trainables.worker import resolve_config

REDUCTION_FACTOR = 3
MIN_EPOCHS_FOR_TWO_RUNGS = 12
_CUTOFF_PERCENTILE = 100 * (1 - 1 / REDUCTION_FACTOR)


def rung_epochs(epochs: int) -> list[int]:
    """Return the epochs after which ASHA decides, ascending, given a trial's full length.

    Trials of fewer than 12 epochs are compared halfway, longer ones after a quarter as well. Where
    a backbone is fine-tuned, the first epochs undo some of what it knows, and its learning rate is
    at its peak: they tell little about the last ones. A rung in the second half would save little,
    and cost a nearly finished trial.
    """
    half = math.ceil(epochs / 2)
    if epochs < 2:
        return []
    return [half] if epochs < MIN_EPOCHS_FOR_TWO_RUNGS else [math.ceil(epochs / 4), half]


@dataclass(frozen=True)
class PastTrial:
    """A trial of an earlier session.

    Attributes:
        curve: The ranking value of each epoch.
        length: Its full length in epochs.
        freeze_depth: Its freeze depth.
    """

    curve: Mapping[int, float]
    length: int
    freeze_depth: int


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

    Trials are compared by their best epoch so far; see `search.tuning.ranking`. Those that train
    the head alone have rungs of their own: they begin near where they end, while others lose
    accuracy first and gain it later. A trial has one
    place at a rung: where it is continued, in a later session or after its worker was lost, its
    last epoch is reported once more and decided again, since the break may have come between the
    report and the decision.
    """

    def __init__(self, past: Mapping[int, PastTrial]) -> None:
        """Set the rungs up.

        Args:
            past: The study's trials, by number.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs: dict[tuple[bool, int], dict[int, float]] = {}
        for number, trial in past.items():
            for index, rung in enumerate(rung_epochs(trial.length)):
                if rung in trial.curve:
                    values = self._rung(trial.freeze_depth, index)
                    values[number] = max(v for epoch, v in trial.curve.items() if epoch <= rung)

    @property
    def rungs(self) -> Mapping[tuple[bool, int], Mapping[int, float]]:
        """The ranking values at each rung, by trial number.

        A rung's key is whether its trials train the head alone, and its place, the first is 0.
        """
        return self._rungs

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide on an epoch: CONTINUE, or STOP below the cutoff of a rung."""
        reported, number = TrialResult.from_dict(result), trial.config["number"]
        rungs = rung_epochs(trial.config["epochs"])
        if reported.epoch not in rungs:
            return self.CONTINUE
        depth = resolve_config(trial.config["params"]).freeze_depth
        values = self._rung(depth, rungs.index(reported.epoch))
        values.pop(number, None)
        others = list(values.values())
        value = ranking_value(reported.best_val_score, reported.best_val_loss)
        values[number] = value
        is_below = bool(others) and value < np.percentile(others, _CUTOFF_PERCENTILE)
        return self.STOP if is_below else self.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial whose last epoch is a rung's."""
        self.on_trial_result(tune_controller, trial, result)

    def _rung(self, freeze_depth: int, index: int) -> dict[int, float]:
        return self._rungs.setdefault((freeze_depth == N_STAGES, index), {})
