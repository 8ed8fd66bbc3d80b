"""The one file that drives Ray Tune: ASHA, concurrency, resources, callbacks."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots
from search.tuning.asha import LetsWorkersStart, ResumableASHA
from search.tuning.checkpoints import CheckpointClient
from search.tuning.curve import append_epoch
from search.tuning.study import LOST, StudySearcher, curves
from spaces.base import Space
from trainables.trial import DISK_FULL, FAILURE, ImageTrial
from trainables.worker import TrainingContext


class TrialCallback(Protocol):
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
        time_is_up: Says whether no trial may go on.
        concurrent: Trials at a time; None is as many as the machines take, as they come and go.
        gpu_fraction: By backbone, the share of a GPU that a trial asks for; 0 without GPUs.
        min_freeze_depth: By backbone, the least depth that there is time for; None without a
            time limit.
    """

    n_trials: int
    sampler: str
    scheduler: str
    interrupted: Callable[[], bool]
    time_is_up: Callable[[], bool]
    concurrent: int | None
    gpu_fraction: Mapping[str, float]
    min_freeze_depth: Callable[[str], int] | None = None


def run_trials(
    plan: SearchPlan,
    study: optuna.Study,
    space: Space,
    context: TrainingContext,
    rows: dict[str, np.ndarray],
    checkpoints: CheckpointClient,
    trials_folder: Path,
    callbacks: Sequence[TrialCallback],
) -> None:
    """Run trials until the study holds as many as the plan asks for, or the time is up.

    Raises:
        Exception: the study or the run's folder could no longer be written to. Nothing was
            recorded after that, so all can be carried on.

    Args:
        plan: How.
        study: Is asked and told.
        space: What is searched.
        context: What all trials share.
        rows: Table rows of "train" and "val".
        checkpoints: Keeps weights and checkpoints.
        trials_folder: Where each trial's `progress.csv` goes.
        callbacks: Are told of each event.
    """
    searcher = StudySearcher(
        study, space, plan.n_trials, plan.sampler, context.seed, plan.min_freeze_depth
    )
    # Tune pickles what it runs with, and a plan reaches too far for that.
    shares, concurrent = dict(plan.gpu_fraction), plan.concurrent
    slots = TrialSlots(CPUS_PER_TRIAL, list(shares.values()))
    earlier = curves(study)
    asha = plan.scheduler == "asha"
    scheduler = ResumableASHA(context.epochs, earlier) if asha else _NoEarlyStopping()  # type: ignore[no-untyped-call]
    reporter = _TuneCallback(space, trials_folder, checkpoints, searcher, callbacks)
    searcher.on_suggested = reporter.begin
    trainable = tune.with_resources(
        tune.with_parameters(
            ImageTrial,
            context=context,
            train_rows=rows["train"],
            val_rows=rows["val"],
            checkpoints=checkpoints,
        ),
        lambda config: tune.PlacementGroupFactory(
            [{"CPU": CPUS_PER_TRIAL, "GPU": shares[config["params"]["backbone"]]}]
        ),
    )
    with tempfile.TemporaryDirectory(prefix="search-tune-") as scratch:
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            search_alg=_AsManyAs(lambda: concurrent or slots(), searcher),
            scheduler=scheduler,
            stop=_SearchStopper(plan, reporter),
            max_failures=0,  # the searcher lets a trial whose worker was lost go on
            num_samples=-1,  # the searcher says when there are enough
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            callbacks=[reporter],
            raise_on_failed_trial=False,
            verbose=0,
        )
    if reporter.broken is not None:
        raise reporter.broken


class _NoEarlyStopping(LetsWorkersStart, FIFOScheduler):
    """Lets every trial run to its end."""


class _AsManyAs(ConcurrencyLimiter):
    """Lets a searcher propose as many trials at a time as there is room for at that time."""

    def __init__(self, limit: Callable[[], int], searcher: Searcher) -> None:
        self._limit = limit
        super().__init__(searcher, limit())

    @property
    def max_concurrent(self) -> int:
        """As asked anew: a machine that joins gets trials."""
        return self._limit()

    @max_concurrent.setter
    def max_concurrent(self, value: int) -> None:
        """Do nothing: the limit says."""


class _SearchStopper(tune.Stopper):
    """Ends the search when the time is up, the user asks for it, or nothing can be written.

    Trials stay unfinished.
    """

    def __init__(self, plan: SearchPlan, reporter: _TuneCallback) -> None:
        self._interrupted, self._time_is_up = plan.interrupted, plan.time_is_up
        self._reporter = reporter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._interrupted() or self._time_is_up() or self._reporter.broken is not None

    def __getstate__(self) -> dict[str, object]:
        """Save nothing: Tune pickles what it runs with, and nobody carries on from that."""
        return {}


class _TuneCallback(tune.Callback):
    """Turns Tune's callbacks into events, and keeps each trial's curve.

    What cannot be written ends the search: the first error is kept, nothing is told after it, and
    the trials that were running go on when the run is carried on.
    """

    def __init__(
        self,
        space: Space,
        folder: Path,
        checkpoints: CheckpointClient,
        searcher: StudySearcher,
        callbacks: Sequence[TrialCallback],
    ) -> None:
        self._searched = set(space.distributions)
        self._keeper = checkpoints
        self._searcher = searcher
        self._folder = folder
        self._listeners = callbacks
        self._started: set[int] = set()
        self._unwritten: Exception | None = None

    @property
    def broken(self) -> Exception | None:
        """Why nothing more can be kept, of the study or of the files beside it."""
        return self._searcher.broken or self._unwritten

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.begin(trial.config["number"], trial.config["params"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        if DISK_FULL in result:
            self._unwritten = self._unwritten or OSError(errno.ENOSPC, result[DISK_FULL])
        if "epoch" not in result or self.broken:
            return
        with self._writing():
            if append_epoch(self._folder / str(number) / "progress.csv", result):
                for callback in self._listeners:
                    callback.trial_epoch(number, result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        number, result = trial.config["number"], trial.last_result or {}
        if FAILURE in result:
            with self._writing():
                (self._folder / str(number)).mkdir(parents=True, exist_ok=True)
                (self._folder / str(number) / "error.txt").write_text(result["traceback"])
            self._end(trial, "failed", {"reason": result[FAILURE]})
        else:
            self._end(trial, "complete" if result.get("finished") else "pruned", result)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if not self._searcher.will_retry(trial.config["number"]):
            self._end(trial, "failed", {"reason": LOST})

    def begin(self, number: int, params: Mapping[str, Any]) -> None:
        """Tell of a trial, once: its worker may come up long after the study has it, or never."""
        if number in self._started:
            return
        self._started.add(number)
        searched = {k: v for k, v in params.items() if k in self._searched}
        with self._writing():
            for callback in self._listeners:
                callback.trial_started(number, searched)

    def _end(self, trial: Trial, state: str, result: dict[str, Any]) -> None:
        if self.broken:
            return
        number = trial.config["number"]
        self._keeper.forget(number)
        with self._writing():
            for callback in self._listeners:
                callback.trial_ended(number, state, result)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep an error of the file system; what Tune makes of one would fail a trial."""
        try:
            yield
        except OSError as error:
            self._unwritten = self._unwritten or error
