"""Asynchronous successive halving (arXiv 1810.05934) whose rungs are rebuilt from the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from search.tuning.ranking import score

REDUCTION_FACTOR = 3
_SCORE = "score"  # key of a result, added here


def rung_epochs(epochs: int) -> list[int]:
    """Return the epochs after which trials are judged, ascending, given a trial's full length.

    8 epochs have rungs at 2 and 3; 20 have them at 2 and 6. After one epoch a trial is still much
    the probe's head that it began with, so those of six and more are not judged there. A rung in
    the second half would save little, and cost a nearly finished trial.
    """
    third = epochs // REDUCTION_FACTOR
    first = max(1, min(2, third), third // REDUCTION_FACTOR)
    second = max(first + 1, third)
    return [first] * (epochs > 1) + [second] * (2 * second < epochs)


class LetsWorkersStart:
    """Leaves it to Tune which pending trial gets the worker that another has left.

    Tune's schedulers name the oldest pending trial. That is the one whose own worker is starting,
    and Tune gives that worker up for the one that is free: while trials end more often than a
    worker takes to start, no machine that joins would ever get one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""


class ResumableASHA(LetsWorkersStart, ASHAScheduler):
    """Ray's ASHA, told at its beginning what trials of earlier sessions came to.

    It compares trials by their best validation accuracy so far, and equals by its loss: where a few
    hundred images validate, every other trial would be among the best otherwise. A trial is known
    by its number in the study: one that goes on, in a later session or after its worker was lost,
    stands where it stood.
    """

    def __init__(self, epochs: int, earlier: Mapping[int, Mapping[int, float]]) -> None:
        """Set the rungs up.

        Args:
            epochs: The full length of a trial.
            earlier: By trial number, the score of each of its epochs; see `search.tuning.ranking`.
        """
        super().__init__(
            time_attr="epoch",
            metric=_SCORE,
            mode="max",
            max_t=epochs,
            reduction_factor=REDUCTION_FACTOR,
        )
        self._brackets[0]._rungs = [(at, {}) for at in reversed(rung_epochs(epochs))]
        self._names: dict[int, str] = {}
        self._last_told: dict[str, int] = {}
        for number, curve in sorted(earlier.items()):
            self._replay(number, curve)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial; one that goes on after a break gets its places back under its new name."""
        super().on_trial_add(tune_controller, trial)
        number = trial.config["number"]
        before = self._names.get(number, trial.trial_id)
        self._names[number] = trial.trial_id
        self._last_told[trial.trial_id] = trial.config["reported"]
        for _, recorded in self._brackets[0]._rungs:
            if before in recorded:
                recorded[trial.trial_id] = recorded.pop(before)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge an epoch; the last one before a break, which is told once more, is judged again.

        The break may have come between that epoch's value and what was decided on it.
        """
        last_told = self._last_told.pop(trial.trial_id, None)
        if last_told is not None and last_told == result.get("epoch"):
            for milestone, recorded in self._brackets[0]._rungs:
                if milestone == last_told:
                    recorded.pop(trial.trial_id, None)
        return str(super().on_trial_result(tune_controller, trial, _scored(result)))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Let a trial go; what it ended with may stand at a rung."""
        super().on_trial_complete(tune_controller, trial, _scored(result))

    def rungs(self) -> dict[float, list[float]]:
        """Return what has been recorded at each rung, ascending."""
        rungs = self._brackets[0]._rungs
        return {milestone: sorted(recorded.values()) for milestone, recorded in reversed(rungs)}

    def _replay(self, number: int, curve: Mapping[int, float]) -> None:
        """Record a trial at every rung that it reached."""
        name = self._names[number] = f"earlier-{number}"
        for milestone, recorded in self._brackets[0]._rungs:
            if milestone in curve:
                recorded[name] = max(v for epoch, v in curve.items() if epoch <= milestone)


def _scored(result: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a result is compared by; a failure has none."""
    if "best_val_accuracy" not in result:
        return dict(result)
    return {**result, _SCORE: score(result["best_val_accuracy"], result["best_val_loss"])}
