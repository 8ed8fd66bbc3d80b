"""The one file that drives Ray Tune: ASHA, concurrency, resources, callbacks."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from search.sharing import most_concurrent
from search.study import StudySearcher
from spaces.base import Space
from trainables.training import EpochResult
from trainables.trial import Bench, ImageTrial

CPUS_A_TRIAL = 1.0
REDUCTION_FACTOR = 3
_EPOCH_COLUMNS = tuple(field.name for field in fields(EpochResult))


class TrialListener(Protocol):
    """Someone who is told how trials go, in the driver."""

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """A trial begins; `params` are those that are searched."""

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """A trial has ended an epoch."""

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """A trial is over; `state` is "complete", "pruned" or "failed"."""


@dataclass(frozen=True)
class SearchPlan:
    """How trials are run.

    Attributes:
        n_trials: How many trials the study is to hold in the end.
        scheduler: "asha" or "none".
        time_budget_seconds: After which no trial goes on; None never ends the search.
        concurrent: Trials at a time; None is as many as the machines take.
        gpu_shares: By backbone, the share of a GPU that a trial asks for; 0 without GPUs.
    """

    n_trials: int
    scheduler: str
    time_budget_seconds: float | None
    concurrent: int | None
    gpu_shares: Mapping[str, float]


def run_trials(
    plan: SearchPlan,
    study: optuna.Study,
    space: Space,
    bench: Bench,
    rows: dict[str, np.ndarray],
    keeper: Any,
    trials_folder: Path,
    listeners: Sequence[TrialListener],
) -> None:
    """Run trials until the study holds as many as the plan asks for, or the time is up.

    Args:
        plan: How.
        study: Is asked and told.
        space: What is searched.
        bench: What all trials share.
        rows: Table rows of "train" and "val".
        keeper: Actor handle of `Keeper`.
        trials_folder: Where each trial's `progress.csv` goes.
        listeners: Are told of each event.
    """
    searcher = StudySearcher(study, space, plan.n_trials)
    trainable = tune.with_resources(
        tune.with_parameters(
            ImageTrial,
            bench=bench,
            train_rows=rows["train"],
            val_rows=rows["val"],
            keeper=keeper,
        ),
        lambda config: tune.PlacementGroupFactory(
            [{"CPU": CPUS_A_TRIAL, "GPU": plan.gpu_shares[config["params"]["backbone"]]}]
        ),
    )
    with tempfile.TemporaryDirectory(prefix="search-tune-") as scratch:
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            search_alg=searcher,
            scheduler=_create_scheduler(plan.scheduler, bench.epochs),
            num_samples=-1,  # the searcher says when there are enough
            max_concurrent_trials=plan.concurrent
            or most_concurrent(CPUS_A_TRIAL, list(plan.gpu_shares.values())),
            reuse_actors=True,
            time_budget_s=plan.time_budget_seconds,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            callbacks=[_Reporter(searcher, space, trials_folder, listeners)],
            raise_on_failed_trial=False,
            verbose=0,
        )


def _create_scheduler(name: str, epochs: int) -> TrialScheduler:
    if name == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric="best_val_accuracy",
        mode="max",
        max_t=epochs,
        grace_period=grace_epochs(epochs),
        reduction_factor=REDUCTION_FACTOR,
    )


def grace_epochs(epochs: int) -> int:
    """Return the epochs that every trial is given: two rungs lie between them and the full length.

    8 epochs have rungs at 1 and 3; 20 have them at 2, 6 and 18.
    """
    return max(1, epochs // REDUCTION_FACTOR**2)


class _Reporter(tune.Callback):
    """Turns Tune's callbacks into events, and keeps each trial's curve."""

    def __init__(
        self,
        searcher: StudySearcher,
        space: Space,
        folder: Path,
        listeners: Sequence[TrialListener],
    ) -> None:
        self._searcher = searcher
        self._searched = set(space.distributions)
        self._folder = folder
        self._listeners = listeners
        self._started: set[str] = set()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if trial.trial_id in self._started:
            return
        self._started.add(trial.trial_id)
        params = {k: v for k, v in trial.config["params"].items() if k in self._searched}
        for listener in self._listeners:
            listener.trial_started(trial.config["number"], params)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        path = self._folder / str(number) / "progress.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _EPOCH_COLUMNS, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(result)
        for listener in self._listeners:
            listener.trial_epoch(number, result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        result = trial.last_result or {}
        state = "complete" if result.get("finished") else "pruned"
        for listener in self._listeners:
            listener.trial_ended(trial.config["number"], state, result)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        reason = _reason(trial)
        self._searcher.on_trial_error(trial.trial_id, reason)
        for listener in self._listeners:
            listener.trial_ended(trial.config["number"], "failed", {"reason": reason})


def _reason(trial: Trial) -> str:
    """Return the last line of what a trial died of."""
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(cause).__name__
