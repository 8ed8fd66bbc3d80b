"""A time budget: trials go on until what is left is what folds and evaluation will take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import optuna

from search.evidence import FIRST
from search.study import SECONDS, STATES, best_epoch, best_value
from spaces.base import Space

FOLD_SECONDS = 1.0
"""What a fold takes besides its epochs: a worker, weights, the probe's head, predictions."""

CLOSING_SECONDS = 12.0
"""Evaluation, boards and report of a small set, measured on two cores."""

MOST_RESERVED = 0.6
"""Of the budget: a winner whose folds take longer than this is worth the delay."""


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
    at their full length; besides them the first trial and the probe, which are always retrained.
    """

    def __init__(
        self,
        seconds: float,
        elapsed: Callable[[], float],
        space: Space,
        n_finalists: int,
        places: Callable[[str], int],
        growth: float,
    ) -> None:
        """Begin.

        Args:
            seconds: The budget, from the command to the last page of the report.
            elapsed: Says how many seconds have gone.
            space: What is searched.
            n_finalists: Trials that are retrained by k-fold.
            places: Says how many folds of a backbone run at a time.
            growth: Pictures that a fold trains on, over those that a trial does.
        """
        self._seconds = seconds
        self._elapsed = elapsed
        self._space = space
        self._n_finalists = n_finalists
        self._places = places
        self._growth = growth
        self._costs: dict[int, TrialCost] = {}
        self._backbones: dict[int, str] = {}

    def catch_up(self, study: optuna.Study) -> None:
        """Take in the trials of earlier sessions."""
        for trial in study.get_trials(deepcopy=False):
            params = {**self._space.constants, **trial.params}
            if trial.state in STATES and SECONDS in trial.user_attrs:
                self._costs[trial.number] = TrialCost(
                    best_value(trial),
                    best_epoch(trial),
                    trial.user_attrs[SECONDS] / len(trial.intermediate_values),
                    str(params["backbone"]),
                )
                ended = STATES[trial.state]
                self.trial_ended(trial.number, ended, {"best_epoch": best_epoch(trial)})

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """See `search.trials.TrialListener`."""
        self._backbones[number] = str({**self._space.constants, **params}["backbone"])

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """See `search.trials.TrialListener`."""
        self._costs[number] = TrialCost(
            result["best_val_accuracy"],
            self._space.epochs,
            result["trained_seconds"] / result["epoch"],
            self._backbones[number],
        )

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """See `search.trials.TrialListener`."""
        cost = self._costs.get(number)
        if cost is None:
            return
        if state == "complete":
            self._costs[number] = replace(cost, epochs=result["best_epoch"])
        elif state == "pruned" and number == FIRST:
            # It is retrained at its full length, but is no rival to the full-length trials.
            self._costs[number] = replace(cost, accuracy=-math.inf)
        else:
            del self._costs[number]

    def is_up(self) -> bool:
        """Say whether no trial may go on."""
        return self._elapsed() + self.reserved_seconds() > self._seconds

    def reserved_seconds(self) -> float:
        """Return what folds, evaluation and report are expected to take."""
        ranked = sorted(self._costs, key=lambda number: -self._costs[number].accuracy)
        finalists = set(ranked[: self._n_finalists]) | ({FIRST} & self._costs.keys())
        folds = sum(self._folds_seconds(self._costs[number]) for number in finalists)
        probe = self._rounds(self._space.backbones[0]) * FOLD_SECONDS
        return min(folds + probe + CLOSING_SECONDS, MOST_RESERVED * self._seconds)

    def __getstate__(self) -> dict[str, object]:
        """Save nothing: Tune pickles what it runs with, and nobody carries on from that."""
        return {}

    def _folds_seconds(self, cost: TrialCost) -> float:
        epoch_seconds = cost.epoch_seconds * self._growth
        return self._rounds(cost.backbone) * (FOLD_SECONDS + cost.epochs * epoch_seconds)

    def _rounds(self, backbone: str) -> int:
        return math.ceil(self._space.folds / max(1, self._places(backbone)))


def fold_growth(n_train: int, n_val: int, folds: int) -> float:
    """Return the pictures that a fold trains on over those that a trial does."""
    return (n_train + n_val) * (folds - 1) / folds / max(1, n_train)
