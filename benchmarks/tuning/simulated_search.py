"""Searches over a table of learning curves: real searchers and schedulers, no Ray processes.

Workers are simulated by a queue of the times at which epochs end. Searchers and schedulers
are called as Tune's controller would call them, in the same order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from benchmarks.tuning.curve_tables import SPACE, CurveTable, View
from search.tuning.asha import ResumableASHA
from search.tuning.searcher import StudySearcher

NO_END = 10**6  # trials: the epochs end a search


@dataclass(frozen=True)
class Side:
    """A way to search.

    Attributes:
        searcher: Makes one, given a seed.
        scheduler: Makes one, given the full length of a trial.
        sees_losses: Whether losses tell equal accuracies apart for them.
    """

    searcher: Callable[[int], Searcher]
    scheduler: Callable[[int], TrialScheduler]
    sees_losses: bool = True


def our_searcher(sampler: str) -> Callable[[int], Searcher]:
    """Return what makes our searcher with one of its samplers."""

    def create(seed: int) -> Searcher:
        return StudySearcher(InMemoryStorage(), SPACE, NO_END, sampler, seed)

    return create


def stock_searcher(seed: int) -> Searcher:
    """Create Ray's searcher with default settings."""
    return OptunaSearch(SPACE.distributions, metric="val_accuracy", mode="max", seed=seed)


def our_asha(epochs: int) -> TrialScheduler:
    """Create our ASHA."""
    return ResumableASHA({})


def stock_asha(epochs: int) -> TrialScheduler:
    """Create Ray's ASHA with default settings."""
    return ASHAScheduler(metric="val_accuracy", mode="max", max_t=epochs)


def no_scheduler(epochs: int) -> TrialScheduler:
    """Create a scheduler that runs every trial in full."""
    return FIFOScheduler()


OURS = "ours"
SIDES = {
    "random": Side(our_searcher("random"), no_scheduler),
    "random + ASHA": Side(our_searcher("random"), stock_asha),
    "stock": Side(stock_searcher, stock_asha),
    OURS: Side(our_searcher("tpe"), our_asha),
}
PARTS = {
    "stock search, our ASHA": Side(stock_searcher, our_asha),
    "our search, stock ASHA": Side(our_searcher("tpe"), stock_asha),
    "Gaussian process, our ASHA": Side(our_searcher("gp"), our_asha),
    "Gaussian process": Side(our_searcher("gp"), no_scheduler),
    "random + our ASHA": Side(our_searcher("random"), our_asha),
    "ours without losses": Side(our_searcher("tpe"), our_asha, sees_losses=False),
}
"""One part changed in each: which of them makes a difference."""


@dataclass(frozen=True)
class Race:
    """Result of one simulated search.

    Attributes:
        val: Validation accuracy of the best so far, after each epoch of training: [budget].
        test: Accuracy on the test images, of the same epoch of the same trial.
        n_trials: Trials that were begun.
        n_full: Trials that ran to their full length.
    """

    val: np.ndarray
    test: np.ndarray
    n_trials: int
    n_full: int


def race(side: Side, table: CurveTable, view: View, budget: int, workers: int, seed: int) -> Race:
    """Search until as many epochs as the budget have been trained, over all trials together.

    The best so far is the best epoch of a full-length trial, or of any while none is full, the
    lower loss deciding between equals: the rule of our own searches, for every side.

    Args:
        side: Who searches.
        table: Answers what is proposed.
        view: View of that table.
        budget: Epochs in all.
        workers: Trials in parallel.
        seed: Seed of the searcher.
    """
    epochs = view.val_accuracy.shape[1]
    searcher, scheduler = side.searcher(seed), side.scheduler(epochs)
    queue: list[tuple[float, int, _Running]] = []
    names = itertools.count()
    taken: set[int] = set()

    def begin(now: float) -> None:
        name = next(names)
        suggested = searcher.suggest(str(name))
        params = suggested.get("params", suggested)
        config = {"number": name, "params": params, "epochs": epochs}
        trial = SimpleNamespace(trial_id=str(name), config=config)
        scheduler.on_trial_add(None, trial)
        row = table.nearest(params, taken)
        taken.add(row)
        heapq.heappush(queue, (now + view.seconds[row], name, _Running(trial, row)))

    for _ in range(workers):
        begin(0.0)
    full = part = (-1.0, 0.0, 0, 0)
    n_full = 0
    val, test = np.empty(budget), np.empty(budget)
    for used in range(budget):
        now, name, running = heapq.heappop(queue)
        result = running.end_epoch(view)
        if not side.sees_losses:
            result = {**result, "val_loss": 0.0, "best_val_loss": 0.0}
        finished = result["done"]
        decision = TrialScheduler.STOP
        if not finished:
            decision = scheduler.on_trial_result(None, running.trial, result)
        if decision == TrialScheduler.STOP:
            scheduler.on_trial_complete(None, running.trial, result)
            searcher.on_trial_complete(running.trial.trial_id, result)
        else:
            searcher.on_trial_result(running.trial.trial_id, result)
        score = (*running.best, running.row, running.best_epoch)
        part = max(part, score)
        if finished:
            n_full += 1
            full = max(full, score)
        _, _, row, epoch = full if n_full else part
        val[used], test[used] = view.val_accuracy[row, epoch], view.test_accuracy[row, epoch]
        if decision == TrialScheduler.STOP:
            begin(now)
        else:
            heapq.heappush(queue, (now + view.seconds[running.row], name, running))
    return Race(val, test, next(names), n_full)


class _Running:
    """A trial that goes through the epochs of a row."""

    def __init__(self, trial: Any, row: int) -> None:
        self.trial, self.row = trial, row
        self.epoch = 0
        self.best = (-1.0, 0.0)
        self.best_epoch = 0

    def end_epoch(self, view: View) -> Mapping[str, Any]:
        """Report what a trial of ours does, and what a stock one would."""
        accuracy = float(view.val_accuracy[self.row, self.epoch])
        loss = float(view.val_loss[self.row, self.epoch])
        if (accuracy, -loss) > self.best:
            self.best, self.best_epoch = (accuracy, -loss), self.epoch
        self.epoch += 1
        finished = self.epoch == view.val_accuracy.shape[1]
        return {
            "epoch": self.epoch,
            "training_iteration": self.epoch,
            "val_score": accuracy,
            "val_accuracy": accuracy,
            "val_loss": loss,
            "best_val_score": self.best[0],
            "best_val_accuracy": self.best[0],
            "best_val_loss": -self.best[1],
            "best_epoch": self.best_epoch + 1,
            "trained_seconds": self.epoch * float(view.seconds[self.row]),
            "node": "simulated",
            "finished": finished,
            "done": finished,
        }
