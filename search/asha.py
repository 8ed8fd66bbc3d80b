"""Asynchronous successive halving (arXiv 1810.05934) whose rungs are rebuilt from the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

REDUCTION_FACTOR = 3


def grace_epochs(epochs: int) -> int:
    """Return the epochs that every trial is given, where the lower of two rungs lies.

    8 epochs have rungs at 1 and 3; 20 have them at 2 and 6.
    """
    return max(1, epochs // REDUCTION_FACTOR**2)


class RebuiltASHA(ASHAScheduler):
    """Ray's ASHA, told at its beginning what trials of earlier sessions came to.

    It compares trials by their best validation accuracy so far. Rungs know trials by the study's
    number, so that one that is carried on stands where it stood.
    """

    def __init__(self, epochs: int, earlier: Mapping[int, Mapping[int, float]]) -> None:
        """Set the rungs up.

        Args:
            epochs: The full length of a trial.
            earlier: By trial number, the validation accuracy of each of its epochs.
        """
        super().__init__(
            time_attr="epoch",
            metric="best_val_accuracy",
            mode="max",
            max_t=epochs,
            grace_period=grace_epochs(epochs),
            reduction_factor=REDUCTION_FACTOR,
        )
        # A rung near the full length would save next to nothing, and cost a finished trial.
        bracket = self._brackets[0]
        bracket._rungs = [(at, rung) for at, rung in bracket._rungs if at <= epochs / 2]
        self._known: dict[int, dict[float, float]] = {}
        for number, curve in sorted(earlier.items()):
            self._replay(number, curve)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial; one of an earlier session gets its places back under its new name."""
        super().on_trial_add(tune_controller, trial)
        places = self._known.pop(trial.config["number"], {})
        for milestone, recorded in self._brackets[0]._rungs:
            if milestone in places:
                del recorded[_earlier(trial.config["number"])]
                recorded[trial.trial_id] = places[milestone]

    def rungs(self) -> dict[float, list[float]]:
        """Return what has been recorded at each rung, ascending."""
        rungs = self._brackets[0]._rungs
        return {milestone: sorted(recorded.values()) for milestone, recorded in reversed(rungs)}

    def _replay(self, number: int, curve: Mapping[int, float]) -> None:
        """Record a trial at every rung that it reached."""
        for milestone, recorded in self._brackets[0]._rungs:
            if milestone in curve:
                best = max(value for epoch, value in curve.items() if epoch <= milestone)
                recorded[_earlier(number)] = best
                self._known.setdefault(number, {})[milestone] = best


def _earlier(number: int) -> str:
    return f"earlier-{number}"
