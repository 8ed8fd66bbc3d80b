"""The Optuna study of a run, and the searcher that feeds it truthfully.

The study is the truth: it holds every trial and every epoch's value. Ray Tune runs trials and
forgets them. A trial that was stopped early is PRUNED, a failed one is FAIL with its reason, and
only a trial that ran to its end is COMPLETE, with its best epoch's accuracy.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import SQLAlchemyError

from search.runs.run_folder import STUDY
from search.tuning.cached_storage import CachedStorage
from search.tuning.ranking import BEST_LOSS, score
from search.tuning.samplers import BudgetedSampler, Grid, create_sampler
from spaces.base import Space, Value
from trainables.trial import FAILURE

STUDY_NAME = "search"

BASELINE_TRIAL = 0
"""Number of the space's first trial, which the winner is compared with."""

# What is kept beside each trial's parameters and values (`trial.user_attrs`).
BEST_EPOCH = "best_epoch"
LOSSES = "val_losses"
REASON = "reason"
NODE = "node"
SECONDS = "seconds"

LOST = "its worker was lost again and again"
MAX_LOST_WORKERS = 5
"""Workers that a trial may lose in a row, without an epoch in between, before it has failed."""

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""What people are shown; any other state is unfinished."""


def storage_url(run_folder: Path) -> str:
    """Return where a run's study lies unless it is told otherwise."""
    return f"sqlite:///{(run_folder / STUDY).absolute()}"


def open_study(storage: str | BaseStorage, space: Space) -> optuna.Study:
    """Open a run's study, or begin it with the space's first trials enqueued.

    Args:
        storage: The URL of a database, or any storage of Optuna's. Until the study is let go of,
            nobody else may write to it.
        space: What is searched.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=CachedStorage(storage),
        study_name=STUDY_NAME,
        direction="maximize",
        load_if_exists=True,
    )
    # A session that was killed here may have enqueued some of them already.
    if all(t.state == TrialState.WAITING for t in study.get_trials(deepcopy=False)):
        for first in space.first_trials:
            searched = {k: v for k, v in first.items() if k in space.distributions}
            study.enqueue_trial(searched, skip_if_exists=True)
    return study


def curves(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Return, by trial number, the score of each epoch; see `search.tuning.ranking`.

    Losses are kept of the epochs that were a trial's best so far; of the others none counts.
    """
    found = {}
    for trial in study.get_trials(deepcopy=False):
        losses = trial.user_attrs.get(LOSSES, {})
        if trial.intermediate_values:
            found[trial.number] = {
                epoch: score(accuracy, losses.get(str(epoch), math.inf))
                for epoch, accuracy in trial.intermediate_values.items()
            }
    return found


def ranked_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the full-length trials, best epoch first; the unfinished ones where none is full.

    Equal accuracies go to the lower validation loss, then to the earlier trial.
    """
    trials = study.get_trials(deepcopy=False)
    full = [t for t in trials if t.state == TrialState.COMPLETE]
    stopped = (TrialState.PRUNED, TrialState.RUNNING)
    partly = [t for t in trials if t.state in stopped and t.intermediate_values]
    return sorted(full or partly, key=_rank)


def _rank(trial: FrozenTrial) -> tuple[float, float, int]:
    return (-best_value(trial), trial.user_attrs.get(BEST_LOSS, math.inf), trial.number)


def best_value(trial: FrozenTrial) -> float:
    """Return the validation accuracy of a trial's best epoch; it must have ended one."""
    return max(trial.intermediate_values.values())


def best_epoch(trial: FrozenTrial) -> int:
    """Return a trial's best epoch; one that was cut off names the first of equals."""
    if BEST_EPOCH in trial.user_attrs:
        return int(trial.user_attrs[BEST_EPOCH])
    return max(trial.intermediate_values, key=lambda e: (trial.intermediate_values[e], -e))


def trial_params(trial: FrozenTrial, space: Space) -> dict[str, Value]:
    """Return a trial's parameters, the space's constants included."""
    return {**space.constants, **trial.params}


class StudySearcher(Searcher):
    """Asks the study for trials on Ray Tune's behalf, and tells it what became of them.

    A trial that was cut off goes on, under its own number and from its last checkpoint, before any
    other is begun: whether an earlier session ended, and the study still calls it RUNNING, or its
    worker or node was lost in this one. To Tune it is a new trial each time.

    Once the study cannot be written, nothing more is told to it, so that no trial is recorded as
    what it was not; `broken` is then the reason, and the search is to be ended.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        n_trials: int,
        sampler: str,
        seed: int,
        min_freeze_depth: Callable[[str], int] | None = None,
    ) -> None:
        """Search until the study holds `n_trials` trials that ended, well or not.

        `min_freeze_depth` says how deep a backbone must be frozen at least, where time is short.
        """
        super().__init__(metric="val_accuracy", mode="max")
        self.broken: Exception | None = None
        self.on_suggested: Callable[[int, dict[str, Value]], None] = lambda number, params: None
        self._study = study
        self._space = space
        self._n_trials = n_trials
        self._sampler, self._seed = sampler, seed
        self._min_freeze_depth = min_freeze_depth
        self._memory: dict[int, FrozenTrial] = {}
        self._running: dict[str, optuna.Trial] = {}
        # Reading the study takes longer the more trials it holds; so it is read once, here.
        trials = study.get_trials(deepcopy=False)
        self._cut_off = deque(t._trial_id for t in trials if t.state == TrialState.RUNNING)
        self._epochs = {t.number: set(t.intermediate_values) for t in trials}
        self._lost: Counter[int] = Counter()
        self._n_begun = sum(t.state != TrialState.WAITING for t in trials)
        self._n_ended = sum(t.state in STATES for t in trials)

    def suggest(self, trial_id: str) -> Any:
        """Propose the next trial; None while one that is running may still come back.

        `Searcher.FINISHED` when there are enough.
        """
        nothing = None if self._running else str(Searcher.FINISHED)
        if self.broken or self._n_ended + len(self._running) >= self._n_trials:
            return nothing
        with self._transaction():
            trial = self._resume(self._cut_off.popleft()) if self._cut_off else self._ask()
            if trial is not None:
                self._running[trial_id] = trial
                params = {**self._space.constants, **trial.params}
                self.on_suggested(trial.number, params)
                return {
                    "number": trial.number,
                    "params": params,
                    "reported": max(self._epochs.setdefault(trial.number, set()), default=0),
                }
        return nothing

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an epoch, once: a trial that went on elsewhere may tell its last one again."""
        if not self.broken and "epoch" in result:
            with self._transaction():
                self._report(self._running[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended, once; one that lost its worker is to go on."""
        trial = self._running.get(trial_id)
        if self.broken or trial is None:
            return
        if error or not result:
            self._lost[trial.number] += 1
            if self.will_retry(trial.number):
                self._cut_off.append(trial._trial_id)
                del self._running[trial_id]
                return
        with self._transaction():
            if error or not result:
                self._fail(trial, LOST)
            elif FAILURE in result:
                self._fail(trial, result[FAILURE])
            else:
                # Tune does not hand the epoch on which it stops a trial to `on_trial_result`.
                self._report(trial, result)
                self._end(trial, result)
            self._n_ended += 1
            del self._running[trial_id]

    def will_retry(self, number: int) -> bool:
        """Say whether a trial whose worker was lost is to go on."""
        return 0 < self._lost[number] <= MAX_LOST_WORKERS

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the study's storage has it all."""

    def _resume(self, trial_id: int) -> optuna.Trial:
        """Take up a trial that was cut off, maybe before all its parameters were drawn."""
        number = self._study._storage.get_trial(trial_id).number
        self._study.sampler = self._create_sampler(number)
        trial = optuna.Trial(self._study, trial_id)
        for name, distribution in self._space.distributions.items():
            trial._suggest(name, distribution)
        return trial

    def _ask(self) -> optuna.Trial | None:
        """Begin a new trial; None when a grid is used up."""
        sampler = self._create_sampler(self._n_begun)
        if isinstance(sampler, Grid) and sampler.is_used_up(self._study):
            return None
        self._study.sampler = sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask(self._space.distributions)
        self._n_begun += 1
        return trial

    def _create_sampler(self, n_proposed: int) -> BaseSampler:
        """Create the sampler of a trial, seeded with how many there were before it.

        So a search that is carried on draws what it would have drawn without the break.
        """
        sampler = create_sampler(
            self._sampler, self._space, self._n_trials, self._seed, n_proposed, self._memory
        )
        if self._min_freeze_depth is None or isinstance(
            sampler, Grid
        ):  # a grid is to have every point
            return sampler
        return BudgetedSampler(sampler, self._space, self._min_freeze_depth)

    def _report(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        epochs = self._epochs[trial.number]
        if result["epoch"] not in epochs:
            if result["best_epoch"] == result["epoch"]:
                losses = trial.user_attrs.get(LOSSES, {})
                losses[str(result["epoch"])] = result["best_val_loss"]
                trial.set_user_attr(LOSSES, losses)
            trial.report(result["val_accuracy"], step=result["epoch"])
            epochs.add(result["epoch"])
            del self._lost[trial.number]

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def _end(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        trial.set_user_attr(BEST_EPOCH, result["best_epoch"])
        trial.set_user_attr(BEST_LOSS, result["best_val_loss"])
        trial.set_user_attr(SECONDS, result["trained_seconds"])
        trial.set_user_attr(NODE, result["node"])
        if result["finished"]:
            self._study.tell(trial, result["best_val_accuracy"])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write at once, or not at all; an error is kept, and nothing is told after that."""
        storage = self._study._storage
        try:
            with storage.transaction() if isinstance(storage, CachedStorage) else nullcontext():
                yield
        except (StorageInternalError, SQLAlchemyError) as error:
            self.broken = error


def outcomes(study: optuna.Study) -> Iterator[tuple[int, dict[str, Any], str, dict[str, Any]]]:
    """Yield the number, parameters, state and result of each trial that ended."""
    for trial in study.get_trials(deepcopy=False, states=tuple(STATES)):
        kept, result = trial.user_attrs, {"reason": trial.user_attrs.get(REASON)}
        if trial.intermediate_values:
            result |= {
                "epoch": max(trial.intermediate_values),
                "best_val_accuracy": best_value(trial),
                "best_epoch": best_epoch(trial),
                "trained_seconds": kept.get(SECONDS, math.nan),
            }
        yield trial.number, dict(trial.params), STATES[trial.state], result


def count_states(study: optuna.Study) -> dict[str, int]:
    """Count the trials that ended by how they did: complete, pruned or failed."""
    ended = study.get_trials(deepcopy=False, states=tuple(STATES))
    found = Counter(trial.state for trial in ended)
    return {name: found[state] for state, name in STATES.items()}


def count_unfinished(study: optuna.Study) -> int:
    """Count the trials that were cut off, and would go on if the run were carried on."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def kept_scores(study: optuna.Study) -> dict[int, tuple[float, float]]:
    """Return each full-length trial's score, as `search.tuning.checkpoints` ranks them."""
    return {
        trial.number: (best_value(trial), -trial.user_attrs.get(BEST_LOSS, math.inf))
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    }


def write_trials(path: Path, study: optuna.Study, space: Space) -> None:
    """Write `trials.csv`: one line a trial, with its parameters, outcome, seconds and node."""
    names = list(space.params)
    head = ["number", "state", "best_val_accuracy", "best_epoch", "epochs", "seconds", "node"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *names, "reason"])
        for trial in study.get_trials(deepcopy=False):
            kept = trial.user_attrs
            params = {**space.constants, **trial.params}
            writer.writerow(
                [
                    trial.number,
                    STATES.get(trial.state, "unfinished"),
                    best_value(trial) if trial.intermediate_values else "",
                    best_epoch(trial) if trial.intermediate_values else "",
                    len(trial.intermediate_values),
                    kept.get(SECONDS, ""),
                    kept.get(NODE, ""),
                    *(params.get(name, "") for name in names),
                    kept.get(REASON, ""),
                ]
            )
