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
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.samplers import Grid, create_sampler
from spaces.base import Space, Value
from trainables.trial import FAILURE

STUDY_NAME = "search"

# What is kept beside each trial's parameters and values (`trial.user_attrs`).
BEST_EPOCH = "best_epoch"
BEST_LOSS = "best_val_loss"
REASON = "reason"
NODE = "node"
SECONDS = "seconds"


STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""What people are shown; any other state is unfinished."""


def storage_url(run_folder: Path) -> str:
    """Return where a run's study lies unless it is told otherwise."""
    return f"sqlite:///{(run_folder / 'study.db').absolute()}"


def open_study(storage: str, space: Space) -> optuna.Study:
    """Open a run's study, or begin it with the space's first trials enqueued.

    Args:
        storage: Any Optuna storage URL.
        space: What is searched.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage, study_name=STUDY_NAME, direction="maximize", load_if_exists=True
    )
    if not study.get_trials(deepcopy=False):
        for first in space.first_trials:
            searched = {k: v for k, v in first.items() if k in space.distributions}
            study.enqueue_trial(searched)
    return study


def curves(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Return, by trial number, the validation accuracy of each epoch."""
    return {
        trial.number: dict(trial.intermediate_values)
        for trial in study.get_trials(deepcopy=False)
        if trial.intermediate_values
    }


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

    A trial that the study still calls RUNNING when a session begins was cut off in an earlier one:
    such trials go on, under their own numbers, before any other is begun.
    """

    def __init__(
        self, study: optuna.Study, space: Space, n_trials: int, sampler: str, seed: int
    ) -> None:
        """Search until the study holds `n_trials` trials that ended, well or not."""
        super().__init__(metric="val_accuracy", mode="max")
        self._study = study
        self._space = space
        self._n_trials = n_trials
        self._sampler, self._seed = sampler, seed
        self._running: dict[str, optuna.Trial] = {}
        self._epochs: dict[str, set[int]] = {}
        # Reading the study takes longer the more trials it holds; so it is read once, here.
        trials = study.get_trials(deepcopy=False)
        self._unfinished = deque(t for t in trials if t.state == TrialState.RUNNING)
        self._n_begun = sum(t.state != TrialState.WAITING for t in trials)
        self._n_ended = sum(t.state in STATES for t in trials)

    def suggest(self, trial_id: str) -> Any:
        """Propose the next trial; `Searcher.FINISHED` when there are enough."""
        if self._n_ended + len(self._running) >= self._n_trials:
            return str(Searcher.FINISHED)
        seen: dict[int, float] = {}
        if self._unfinished:
            unfinished = self._unfinished.popleft()
            trial: optuna.Trial | None = optuna.Trial(self._study, unfinished._trial_id)
            seen = unfinished.intermediate_values
        else:
            trial = self._ask()
        if trial is None:
            return str(Searcher.FINISHED)
        self._running[trial_id] = trial
        self._epochs[trial_id] = set(seen)
        return {
            "number": trial.number,
            "params": {**self._space.constants, **trial.params},
            "reported": max(seen, default=0),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an epoch, once: a trial that was moved elsewhere may tell its last one again."""
        if FAILURE not in result and result["epoch"] not in self._epochs[trial_id]:
            self._epochs[trial_id].add(result["epoch"])
            self._running[trial_id].report(result["val_accuracy"], step=result["epoch"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended, once."""
        trial = self._running.get(trial_id)
        if trial is None:
            return
        if error or not result or FAILURE in result:
            reason = (result or {}).get(FAILURE, "its worker was lost again and again")
            trial.set_user_attr(REASON, reason)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            # Tune does not hand the epoch on which it stops a trial to `on_trial_result`.
            self.on_trial_result(trial_id, result)
            trial.set_user_attr(BEST_EPOCH, result["best_epoch"])
            trial.set_user_attr(BEST_LOSS, result["best_val_loss"])
            trial.set_user_attr(SECONDS, result["trained_seconds"])
            trial.set_user_attr(NODE, result["node"])
            if result["finished"]:
                self._study.tell(trial, result["best_val_accuracy"])
            else:
                self._study.tell(trial, state=TrialState.PRUNED)
        self._n_ended += 1
        del self._running[trial_id], self._epochs[trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the study's storage has it all."""

    def _ask(self) -> optuna.Trial | None:
        """Begin a new trial; None when a grid is used up.

        Each is drawn by a sampler seeded with the count of those before it, so that a search that
        is carried on draws what it would have drawn without the break.
        """
        sampler = create_sampler(
            self._sampler, self._space, self._n_trials, self._seed, self._n_begun
        )
        if isinstance(sampler, Grid) and sampler.is_used_up(self._study):
            return None
        self._study.sampler = sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask(self._space.distributions)
        self._n_begun += 1
        return trial


def count_states(study: optuna.Study) -> dict[str, int]:
    """Count the trials that ended by how they did: complete, pruned or failed."""
    ended = study.get_trials(deepcopy=False, states=tuple(STATES))
    found = Counter(trial.state for trial in ended)
    return {name: found[state] for state, name in STATES.items()}


def count_unfinished(study: optuna.Study) -> int:
    """Count the trials that were cut off, and would go on if the run were carried on."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def kept_scores(study: optuna.Study) -> dict[int, tuple[float, float]]:
    """Return each full-length trial's score, as `search.keeper` ranks them."""
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
