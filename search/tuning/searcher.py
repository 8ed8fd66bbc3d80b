"""Feed Ray Tune with trials from the Optuna study, and record in the study how they went.

The module is long because one class keeps the proposals and the records of trials in step.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.runs.journal import StudyStorage
from search.tuning.ranking import ranking_value
from search.tuning.samplers import (
    BudgetedSampler,
    create_sampler,
    draw_params,
    grid_points,
    nearest_depth,
)
from search.tuning.study import (
    BASELINE_TRIAL,
    BEST,
    EPOCHS,
    LEARNING_RATES,
    NODE,
    REASON,
    SECONDS,
    STATES,
    open_study,
    trial_length,
    trial_params,
)
from spaces.base import Space
from spaces.rules import Value
from trainables.trial_result import TrialResult
from trainables.worker import resolve_config

_log = logging.getLogger(__name__)

LOST = "its worker was lost again and again"
"""Why a trial failed whose workers died, one after the other."""

MAX_LOST_WORKERS = 5
"""Workers that a trial may lose in a row, without an epoch in between, before it has failed."""


class StudySearcher(Searcher):
    """Propose the study's trials to Ray Tune, and record their epochs and ends in the study.

    An interrupted trial is continued under its number, from its last checkpoint, before a new one
    begins: whether an earlier session ended, and the study still has it as RUNNING, or its worker
    or node was lost in this session. To Tune it is a new trial each time.

    Attributes:
        storage_error: Why the study can no longer be written; None while it can. Nothing is
            recorded after that, so that no trial is recorded as what it was not, and the search is
            to be ended.
    """

    def __init__(
        self,
        storage: BaseStorage,
        space: Space,
        n_trials: int | None,
        sampler: str,
        seed: int,
        lengths: Callable[[str], Mapping[int, int]] | None = None,
        max_concurrent: Callable[[], int] | None = None,
        on_suggested: Callable[[int, dict[str, Value]], None] = lambda number, params: None,
        patience_trials: int | None = None,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """Search until `n_trials` trials of the study have ended, in whatever state.

        Args:
            storage: Has the study, in which trials are recorded; it is created if it has none.
            space: What is searched.
            n_trials: How many trials of the study have to end, those of earlier sessions included;
                None is any number.
            sampler: "tpe", "gp", "random" or "grid".
            seed: Seed of the samplers.
            lengths: Returns, for a backbone, the epochs that there is time for, by the freeze depth
                that there is time to train; None without a time budget.
            max_concurrent: Returns how many trials may run in parallel; None is any number.
            on_suggested: Called with the number and the parameters of each trial that is proposed.
            patience_trials: Trials in a row without a better complete one after which none is
                proposed; None is any number.
            may_begin: Returns whether another trial may begin.
        """
        super().__init__(metric="val_score", mode="max")
        study = open_study(storage)
        self.storage_error: Exception | None = None
        self._storage, self._study = storage, study
        self._space = space
        self._may_begin = may_begin
        self._n_trials = math.inf if n_trials is None else n_trials
        self._patience = math.inf if patience_trials is None else patience_trials
        self._sampler, self._seed = sampler, seed
        self._lengths = lengths
        self._max_concurrent = max_concurrent
        self._on_suggested = on_suggested
        self._running: dict[str, optuna.Trial] = {}
        trials = study.get_trials(deepcopy=False)
        self._interrupted = deque(t.number for t in trials if t.state == TrialState.RUNNING)
        self._epochs = {t.number: set(t.intermediate_values) for t in trials}
        self._lost: Counter[int] = Counter()
        self._n_begun = sum(t.state != TrialState.WAITING for t in trials)
        self._n_ended = sum(t.state in STATES for t in trials)
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        best = max(complete, key=lambda t: (t.value, -t.number), default=None)
        self._best_value = -math.inf if best is None else float(best.value or 0.0)
        self._n_since_best = sum(
            t.state in STATES and (best is None or t.number > best.number) for t in trials
        )
        begun = [t.params for t in trials]
        self._grid = (point for point in grid_points(space, seed) if point not in begun)

    def suggest(self, trial_id: str) -> Any:
        """Propose the next trial.

        Returns:
            Its `number`, its `params`, and its full length in `epochs`. None where as many trials
            run as may, or where one that runs may have to be continued; `Searcher.FINISHED` where
            there are enough, or no other may begin.
        """
        none_now = None if self._running else str(Searcher.FINISHED)
        if self.storage_error or self._n_ended + len(self._running) >= self._n_trials:
            return none_now
        if not self._interrupted and (self.out_of_patience or not self._may_begin()):
            return none_now
        if self._max_concurrent is not None and len(self._running) >= self._max_concurrent():
            return None
        with self._recording():
            trial = self._resume(self._interrupted.popleft()) if self._interrupted else self._ask()
            if trial is not None:
                self._running[trial_id] = trial
                params = trial_params(trial, self._space)
                self._on_suggested(trial.number, params)
                return {"number": trial.number, "params": params, "epochs": self._length(trial)}
        return none_now

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an epoch, once: a trial that is continued reports its last one again."""
        reported = TrialResult.from_dict(result)
        if not self.storage_error and reported.epoch:
            with self._recording():
                self._report(self._running[trial_id], reported)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record how a trial ended, once; one that lost its worker is continued."""
        trial = self._running.get(trial_id)
        if self.storage_error or trial is None:
            return
        if error or not result:
            self._lost[trial.number] += 1
            if self.will_retry(trial.number):
                self._interrupted.append(trial.number)
                del self._running[trial_id]
                return
        with self._recording():
            last = TrialResult.from_dict(result or {})
            if error or not result:
                self._fail(trial, LOST)
            elif last.failure is not None:
                self._fail(trial, last.failure)
            else:
                # Tune does not pass the epoch at which it stops a trial to `on_trial_result`.
                self._report(trial, last)
                self._end(trial, last)
            self._n_ended += 1
            self._n_since_best += 1
            value = ranking_value(last.best_val_score, last.best_val_loss)
            if last.finished and value > self._best_value:
                self._best_value, self._n_since_best = value, 0
            del self._running[trial_id]

    @property
    def out_of_patience(self) -> bool:
        """Whether as many trials as `patience_trials` have ended without a better one."""
        return self._n_since_best >= self._patience

    def will_retry(self, number: int) -> bool:
        """Return whether a trial whose worker was lost will be continued."""
        return 0 < self._lost[number] <= MAX_LOST_WORKERS

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: all is in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: all is in the study."""

    def _resume(self, number: int) -> optuna.Trial:
        """Continue an interrupted trial, maybe one of which not all parameters were drawn."""
        self._set_sampler(number)
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        with self._bounded():
            trial = optuna.Trial(self._study, trial_id)
            draw_params(trial, self._space)
        return trial

    def _bounded(self) -> AbstractContextManager[None]:
        """Let samplers read a bounded number of trials."""
        return self._storage.bounded() if isinstance(self._storage, StudyStorage) else nullcontext()

    def _length(self, trial: optuna.Trial) -> int:
        """Return the full length of a trial, which is chosen once."""
        if self._lengths is None or EPOCHS in trial.user_attrs:
            return trial_length(trial, self._space)
        config = resolve_config(trial_params(trial, self._space))
        by_depth = self._lengths(config.backbone)
        epochs = by_depth.get(config.freeze_depth, min(by_depth.values()))
        trial.set_user_attr(EPOCHS, epochs)
        return epochs

    def _ask(self) -> optuna.Trial | None:
        """Begin a new trial; None when a grid is used up."""
        if self._n_begun < len(self._space.first_trials):
            self._enqueue_first_trial()
        elif self._sampler == "grid" and not self._enqueue_grid_point():
            return None
        self._set_sampler(self._n_begun)
        with warnings.catch_warnings(), self._bounded():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask()
            draw_params(trial, self._space)
        if trial.number > len(self._epochs):
            raise StorageInternalError("another process writes to the study, too")
        self._epochs.setdefault(trial.number, set())
        self._n_begun += 1
        return trial

    def _enqueue_first_trial(self) -> None:
        """Enqueue the next of the space's first trials, unless one waits that a session enqueued.

        It is frozen to a depth that there is time for; but the baseline is what the user made it.
        """
        if self._has_waiting():
            return
        space, params = self._space, dict(self._space.first_trials[self._n_begun])
        depth = params.get("freeze_depth")
        if self._lengths is not None and self._n_begun != BASELINE_TRIAL and isinstance(depth, int):
            params["freeze_depth"] = nearest_depth(depth, params, space, self._lengths)
        searched = {name: value for name, value in params.items() if name in space.distributions}
        self._study.enqueue_trial(searched, skip_if_exists=True)

    def _enqueue_grid_point(self) -> bool:
        """Enqueue the next point of the grid, unless one waits; return whether one waits then."""
        while not self._has_waiting():
            point = next(self._grid, None)
            if point is None:
                return False
            self._study.enqueue_trial(point, skip_if_exists=True)
        return True

    def _has_waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _set_sampler(self, n_proposed: int) -> None:
        """Give the study the sampler of a trial, seeded by how many there were before it."""
        sampler = create_sampler(
            self._sampler, self._space, self._space.trials, self._seed, n_proposed
        )
        if self._lengths is not None:
            sampler = BudgetedSampler(sampler, self._space, self._lengths)
        self._study.sampler = sampler

    # What describes an epoch or an end is written before the line that makes it count, so that a
    # process may be killed between any two.

    def _report(self, trial: optuna.Trial, result: TrialResult) -> None:
        epochs = self._epochs[trial.number]
        if result.epoch not in epochs:
            self._set_best(trial, result)
            self._set_learning_rate(trial, result)
            value = ranking_value(result.val_score, result.val_loss)
            trial.report(value, step=result.epoch)
            epochs.add(result.epoch)
            del self._lost[trial.number]

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def _end(self, trial: optuna.Trial, result: TrialResult) -> None:
        self._set_best(trial, result)
        trial.set_user_attr(SECONDS, result.trained_seconds)
        trial.set_user_attr(NODE, result.node)
        if result.finished:
            value = ranking_value(result.best_val_score, result.best_val_loss)
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def _set_best(self, trial: optuna.Trial, result: TrialResult) -> None:
        best = {
            "epoch": result.best_epoch,
            "val_score": result.best_val_score,
            "val_accuracy": result.best_val_accuracy,
            "val_loss": result.best_val_loss,
        }
        if trial.user_attrs.get(BEST) != best:
            trial.set_user_attr(BEST, best)

    def _set_learning_rate(self, trial: optuna.Trial, result: TrialResult) -> None:
        """Record the learning rate of an epoch where a plateau schedule has changed it."""
        if trial_params(trial, self._space).get("scheduler") != "plateau":
            return
        recorded = trial.user_attrs.get(LEARNING_RATES, {})
        if list(recorded.values())[-1:] != [result.lr]:
            # An epoch that a killed session had not recorded in full is overwritten.
            trial.set_user_attr(LEARNING_RATES, {**recorded, str(result.epoch): result.lr})

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Keep the first error of writing the study; nothing is recorded after it."""
        storage = self._storage
        try:
            with (
                storage.journal.synced_once()
                if isinstance(storage, StudyStorage)
                else nullcontext()
            ):
                yield
        except (OSError, StorageInternalError) as error:
            _log.error("the study cannot be written: %s", error)
            self.storage_error = error
