"""Run the trials of a search with Ray Tune: scheduler, resources, stopping, callbacks."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from ray import tune
from ray.tune import Callback as Callback
from ray.tune.experiment import Trial

from search.cluster.nodes import is_draining
from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots
from search.tuning.asha import NoEarlyStopping, PastTrial, ResumableASHA
from search.tuning.checkpoints import CheckpointClient
from search.tuning.searcher import LOST, StudySearcher
from search.tuning.study import append_epoch, open_study, trial_length, trial_params
from search.tuning.trial_events import TrialCallback, TrialEvents
from spaces.base import Space
from trainables.atomic_write import write_atomically
from trainables.trial import LEAVES_NODE, ImageTrial
from trainables.trial_result import TrialResult
from trainables.worker import TrainingContext, resolve_config

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchPlan:
    """How the trials of a search are run.

    Attributes:
        n_trials: How many trials of the study have to end; None goes on while there is time.
        sampler: "tpe", "gp", "random" or "grid".
        scheduler: "asha" or "none".
        interrupted: Returns whether the user has asked to stop.
        time_is_up: Returns whether no trial may continue.
        max_concurrent: Trials in parallel; None is as many as the machines take, as they come and
            go.
        gpu_fraction: By backbone, the fraction of a GPU that a trial takes; 0 without GPUs.
        lengths: Returns, for a backbone, the epochs that there is time for, by the freeze depth
            that there is time to train; None without a time budget.
        may_begin: Returns whether another trial may begin.
        patience_trials: Trials in a row without a better one after which the search ends; None
            goes on.
    """

    n_trials: int | None
    sampler: str
    scheduler: str
    interrupted: Callable[[], bool]
    time_is_up: Callable[[], bool]
    max_concurrent: int | None
    gpu_fraction: Mapping[str, float]
    lengths: Callable[[str], Mapping[int, int]] | None = None
    may_begin: Callable[[], bool] = lambda: True
    patience_trials: int | None = None


def _past_trials(study: optuna.Study, space: Space) -> dict[int, PastTrial]:
    """Return the trials of earlier sessions that have ended an epoch, by number."""
    return {
        trial.number: PastTrial(
            trial.intermediate_values,
            trial_length(trial, space),
            resolve_config(trial_params(trial, space)).freeze_depth,
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.intermediate_values
    }


def run_trials(
    plan: SearchPlan,
    storage: BaseStorage,
    space: Space,
    context: TrainingContext,
    rows: dict[str, np.ndarray],
    checkpoints: CheckpointClient,
    trials_folder: Path,
    callbacks: Sequence[TrialCallback],
    tune_callbacks: Sequence[Callback] = (),
    tolerating: Callable[[str], AbstractContextManager[None]] = lambda what: nullcontext(),
) -> bool:
    """Run trials until as many of the study have ended as the plan names, or the time is up.

    Args:
        plan: How they are run.
        storage: Has the study, in which trials are recorded.
        space: What is searched.
        context: What all trials share.
        rows: Table rows of "train" and "val".
        checkpoints: Keeps weights and checkpoints.
        trials_folder: Where each trial's `progress.csv` goes.
        callbacks: Called at each event.
        tune_callbacks: Called by Tune itself, after these.
        tolerating: Returns a context that handles the errors of `tune_callbacks`; its argument says
            what an error costs.

    Returns:
        Whether the search ended since its last trials brought nothing better.

    Raises:
        Exception: the study or the run's folder can no longer be written to. Nothing was recorded
            after that, so the run can be resumed.
    """
    # Tune pickles what it runs with, and a plan reaches too far for that.
    fractions, max_concurrent = dict(plan.gpu_fraction), plan.max_concurrent
    slots = TrialSlots(CPUS_PER_TRIAL, list(fractions.values()))
    events = TrialEvents(space, callbacks)
    study = open_study(storage)
    searcher = StudySearcher(
        storage,
        space,
        plan.n_trials,
        plan.sampler,
        context.seed,
        plan.lengths,
        lambda: max_concurrent or slots(),
        events.trial_started,
        plan.patience_trials,
        plan.may_begin,
    )
    callback = _TuneCallback(trials_folder, checkpoints, searcher, events)
    trainable = tune.with_resources(
        tune.with_parameters(
            ImageTrial,
            context=context,
            train_rows=rows["train"],
            val_rows=rows["val"],
            checkpoints=checkpoints,
            n_threads=int(CPUS_PER_TRIAL),
            is_draining=is_draining,
        ),
        lambda config: tune.PlacementGroupFactory(
            [{"CPU": CPUS_PER_TRIAL, "GPU": fractions[config["params"]["backbone"]]}]
        ),
    )
    with tempfile.TemporaryDirectory(prefix="search-tune-") as scratch:
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            search_alg=searcher,
            scheduler=(
                ResumableASHA(_past_trials(study, space))
                if plan.scheduler == "asha"
                else NoEarlyStopping()  # type: ignore[no-untyped-call]
            ),
            stop=_SearchStopper(plan, callback),
            max_failures=0,  # the searcher continues a trial whose worker was lost
            num_samples=-1,  # the searcher ends the search
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            callbacks=[callback, *(_TolerantCallback(one, tolerating) for one in tune_callbacks)],
            raise_on_failed_trial=False,
            verbose=0,
        )
    if callback.storage_error is not None:
        raise callback.storage_error
    return searcher.out_of_patience


class _SearchStopper(tune.Stopper):
    """End the search when the time is up, the user asks for it, or nothing can be written.

    The trials that run then stay unfinished.
    """

    def __init__(self, plan: SearchPlan, callback: _TuneCallback) -> None:
        self._interrupted, self._time_is_up = plan.interrupted, plan.time_is_up
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._interrupted() or self._time_is_up() or self._callback.storage_error is not None

    def __getstate__(self) -> dict[str, object]:
        """Save nothing: Tune pickles what it runs with, and a run is resumed from its study."""
        return {}


class _TolerantCallback(Callback):
    """A user's callback whose errors end nothing; its state is not saved, as none is restored."""

    def __init__(
        self, callback: Callback, tolerating: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        name = f"what the callback {type(callback).__name__} does"
        for hook in vars(Callback):
            if hook == "setup" or hook.startswith("on_"):
                setattr(self, hook, self._tolerant(getattr(callback, hook), tolerating, name))

    @staticmethod
    def _tolerant(
        hook: Callable[..., None],
        tolerating: Callable[[str], AbstractContextManager[None]],
        name: str,
    ) -> Callable[..., None]:
        def call(*arguments: Any, **info: Any) -> None:
            with tolerating(name):
                hook(*arguments, **info)

        return call


class _TuneCallback(Callback):
    """Log Tune's events, pass them on to the callbacks, and keep each trial's learning curve.

    What cannot be written ends the search: the first error is kept, nothing is passed on after it,
    and the trials that were running are continued when the run is resumed.
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: CheckpointClient,
        searcher: StudySearcher,
        events: TrialEvents,
    ) -> None:
        self._folder = folder
        self._checkpoints = checkpoints
        self._searcher = searcher
        self._events = events

    @property
    def storage_error(self) -> Exception | None:
        """Why the study, or a file beside it, can no longer be written."""
        return self._searcher.storage_error or self._events.write_error

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number, reported = trial.config["number"], TrialResult.from_dict(result)
        with self._events.writing():
            if reported.disk_full is not None:
                raise OSError(errno.ENOSPC, reported.disk_full)
            if reported.epoch == 0 or self.storage_error is not None:
                return
            if append_epoch(self._folder / str(number) / "progress.csv", reported):
                self._events.trial_epoch(number, reported)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        number, result = trial.config["number"], TrialResult.from_dict(trial.last_result or {})
        if result.failure is None:
            self._end(number, "complete" if result.finished else "pruned", result)
            return
        path = self._folder / str(number) / "error.txt"
        with self._events.writing(), write_atomically(path) as partial:
            partial.write_text(result.traceback or "", encoding="utf-8", errors="replace")
        self._end(number, "failed", result)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        number, node = trial.config["number"], (trial.last_result or {}).get("node_ip")
        error = Path(trial.error_file) if trial.error_file else None
        reason = error.read_bytes().decode(errors="replace") if error and error.is_file() else ""
        about = {"node": node} if node else None
        if LEAVES_NODE in reason:
            _log.info("trial %d leaves a node that is being drained", number, extra=about)
        else:
            _log.warning("trial %d lost its worker: %s", number, reason.strip(), extra=about)
        if not self._searcher.will_retry(number):
            self._end(number, "failed", TrialResult(failure=LOST))

    def _end(self, number: int, state: str, result: TrialResult) -> None:
        if self.storage_error is not None:
            return
        if result.failure is not None:
            trace = f"\n{result.traceback}" if result.traceback else ""
            about = {"node": result.node} if result.node else None
            _log.error("trial %d failed: %s%s", number, result.failure, trace, extra=about)
        self._checkpoints.delete_checkpoint(number)
        self._events.trial_ended(number, state, result)
