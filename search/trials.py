"""The one file that drives Ray Tune: ASHA, concurrency, resources, callbacks."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import search.session  # isort: skip  # noqa: F401 - sets the environment that Tune reads

import numpy as np
import optuna
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from search.asha import RebuiltASHA
from search.sharing import most_concurrent
from search.study import StudySearcher, curves
from spaces.base import Space
from trainables.training import EpochResult
from trainables.trial import FAILURE, Bench, ImageTrial

CPUS_A_TRIAL = 1.0
MOST_LOST_WORKERS = 5
"""Times that a trial goes on after its worker was lost, before it has failed."""

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
        sampler: "tpe", "random" or "grid".
        scheduler: "asha" or "none".
        interrupted: Says whether the user has asked to stop.
        time_budget_seconds: After which no trial goes on; None never ends the search.
        concurrent: Trials at a time; None is as many as the machines take.
        gpu_shares: By backbone, the share of a GPU that a trial asks for; 0 without GPUs.
    """

    n_trials: int
    sampler: str
    scheduler: str
    interrupted: Callable[[], bool]
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
    searcher = StudySearcher(study, space, plan.n_trials, plan.sampler, bench.seed)
    earlier = curves(study)
    asha = plan.scheduler == "asha"
    scheduler = RebuiltASHA(bench.epochs, earlier) if asha else FIFOScheduler()
    told = {number: max(curve) for number, curve in earlier.items()}
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
            scheduler=scheduler,
            stop=_Deadline(plan.time_budget_seconds, plan.interrupted),
            max_failures=MOST_LOST_WORKERS,
            num_samples=-1,  # the searcher says when there are enough
            max_concurrent_trials=plan.concurrent
            or most_concurrent(CPUS_A_TRIAL, list(plan.gpu_shares.values())),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            callbacks=[_Reporter(space, trials_folder, keeper, told, listeners)],
            raise_on_failed_trial=False,
            verbose=0,
        )


class _Deadline(tune.Stopper):
    """Ends the search when the time is up or the user asks for it; trials stay unfinished."""

    def __init__(self, seconds: float | None, interrupted: Callable[[], bool]) -> None:
        self._at = None if seconds is None else monotonic() + seconds
        self._interrupted = interrupted

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._interrupted() or (self._at is not None and monotonic() > self._at)


class _Reporter(tune.Callback):
    """Turns Tune's callbacks into events, and keeps each trial's curve."""

    def __init__(
        self,
        space: Space,
        folder: Path,
        keeper: Any,
        told: Mapping[int, int],
        listeners: Sequence[TrialListener],
    ) -> None:
        self._searched = set(space.distributions)
        self._keeper = keeper
        self._told = dict(told)
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
        if FAILURE in result or result["epoch"] <= self._told.get(number, 0):
            return
        self._told[number] = result["epoch"]
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
        number, result = trial.config["number"], trial.last_result or {}
        if FAILURE in result:
            (self._folder / str(number)).mkdir(parents=True, exist_ok=True)
            (self._folder / str(number) / "error.txt").write_text(result["traceback"])
            self._end(number, "failed", {"reason": result[FAILURE]})
        else:
            self._end(number, "complete" if result.get("finished") else "pruned", result)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        reason = "its worker was lost again and again"
        self._end(trial.config["number"], "failed", {"reason": reason})

    def _end(self, number: int, state: str, result: dict[str, Any]) -> None:
        self._keeper.forget.remote(number)
        for listener in self._listeners:
            listener.trial_ended(number, state, result)
