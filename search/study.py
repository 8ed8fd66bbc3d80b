"""The Optuna study of a run, and the searcher that feeds it truthfully.

The study is the truth: it holds every trial and every epoch's value. Ray Tune runs trials and
forgets them. A trial that was stopped early is PRUNED, a failed one is FAIL with its reason, and
only a trial that ran to its end is COMPLETE, with its best epoch's accuracy.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from spaces.base import Space, Value

STUDY_NAME = "search"
RANDOM_SHARE = 0.25  # of the trials are random before TPE takes over, at most 10
_GRID_POINTS = 3  # of each continuous parameter

# What is kept beside each trial's parameters and values (`trial.user_attrs`).
BEST_EPOCH = "best_epoch"
BEST_VALUE = "best_val_accuracy"
REASON = "reason"
NODE = "node"
SECONDS = "seconds"


def storage_url(run_folder: Path) -> str:
    """Return where a run's study lies unless it is told otherwise."""
    return f"sqlite:///{(run_folder / 'study.db').absolute()}"


def open_study(storage: str, space: Space, sampler: str, n_trials: int, seed: int) -> optuna.Study:
    """Open a run's study, or begin it with the space's first trials enqueued.

    Args:
        storage: Any Optuna storage URL.
        space: What is searched.
        sampler: "tpe", "random" or "grid".
        n_trials: How many trials are asked for; a share of them is random before TPE begins.
        seed: Of the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY_NAME,
        direction="maximize",
        sampler=_create_sampler(sampler, space, n_trials, seed),
        load_if_exists=True,
    )
    if not study.trials:
        for first in space.first_trials:
            searched = {k: v for k, v in first.items() if k in space.distributions}
            study.enqueue_trial(searched)
    return study


def ranked_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the full-length trials, best epoch first; the unfinished ones where none is full.

    Equal accuracies go to the lower validation loss, then to the earlier trial.
    """
    trials = study.get_trials(deepcopy=False)
    full = [t for t in trials if t.state == TrialState.COMPLETE]
    candidates = full or [t for t in trials if BEST_VALUE in t.user_attrs]
    return sorted(candidates, key=_rank)


def _rank(trial: FrozenTrial) -> tuple[float, float, int]:
    return (
        -trial.user_attrs[BEST_VALUE],
        trial.user_attrs.get("best_val_loss", math.inf),
        trial.number,
    )


def trial_params(trial: FrozenTrial, space: Space) -> dict[str, Value]:
    """Return a trial's parameters, the space's constants included."""
    return {**space.constants, **trial.params}


class StudySearcher(Searcher):
    """Asks the study for trials on Ray Tune's behalf, and tells it what became of them."""

    def __init__(self, study: optuna.Study, space: Space, n_trials: int) -> None:
        """Search until the study holds `n_trials` trials that ended well."""
        super().__init__(metric="val_accuracy", mode="max")
        self._study = study
        self._space = space
        self._n_trials = n_trials
        self._running: dict[str, optuna.Trial] = {}
        self._reasons: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """Propose the next trial; `Searcher.FINISHED` when there are enough."""
        if sum(count_states(self._study).values()) + len(self._running) >= self._n_trials:
            return str(Searcher.FINISHED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask(self._space.distributions)
        self._running[trial_id] = trial
        return {
            "number": trial.number,
            "params": {**self._space.constants, **trial.params},
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an epoch."""
        trial = self._running[trial_id]
        trial.report(result["val_accuracy"], step=result["epoch"])
        trial.set_user_attr(BEST_EPOCH, result["best_epoch"])
        trial.set_user_attr(BEST_VALUE, result["best_val_accuracy"])
        trial.set_user_attr("best_val_loss", result["best_val_loss"])
        trial.set_user_attr(SECONDS, result["time_total_s"])
        trial.set_user_attr(NODE, result["node"])

    def on_trial_error(self, trial_id: str, reason: str) -> None:
        """Keep why a trial failed, for the moment that Tune says that it did."""
        self._reasons[trial_id] = reason

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        if error or result is None:
            trial.set_user_attr(
                REASON, self._reasons.pop(trial_id, "stopped before an epoch ended")
            )
            self._study.tell(trial, state=TrialState.FAIL)
        elif result["finished"]:
            self._study.tell(trial, result["best_val_accuracy"])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def number_of(self, trial_id: str) -> int:
        """Return the study's number of a trial that is running."""
        return self._running[trial_id].number

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the study's storage has it all."""


def count_states(study: optuna.Study) -> dict[str, int]:
    """Count the trials that ended by how they did: complete, pruned, or fail."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    found = Counter(t.state for t in study.get_trials(deepcopy=False, states=ended))
    return {state.name.lower(): found[state] for state in ended}


def _create_sampler(
    name: str, space: Space, n_trials: int, seed: int
) -> optuna.samplers.BaseSampler:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "grid":
        grid = {k: _grid_values(d) for k, d in space.distributions.items()}
        return optuna.samplers.GridSampler(grid, seed=seed)
    n_random = min(10, max(len(space.first_trials) + 1, round(RANDOM_SHARE * n_trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=n_random, multivariate=True, constant_liar=True, seed=seed
        )


def _grid_values(distribution: BaseDistribution) -> list[Value]:
    """Return a grid over one parameter: all choices, or evenly spaced values, both ends in."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # type: ignore[arg-type]
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        steps = [i / (_GRID_POINTS - 1) for i in range(_GRID_POINTS)]
        if distribution.log:
            return [math.exp(math.log(low) + s * (math.log(high) - math.log(low))) for s in steps]
        return [low + s * (high - low) for s in steps]
    if isinstance(distribution, optuna.distributions.IntDistribution):
        values = list(range(distribution.low, distribution.high + 1, distribution.step))
        if len(values) <= 2 * _GRID_POINTS:
            return list(values)
        last = len(values) - 1
        return [values[round(i * last / (_GRID_POINTS - 1))] for i in range(_GRID_POINTS)]
    raise TypeError(f"no grid over {distribution}")


def kept_scores(study: optuna.Study) -> dict[int, tuple[float, float]]:
    """Return each full-length trial's score, as `search.keeper` ranks them."""
    return {
        trial.number: (
            trial.user_attrs[BEST_VALUE],
            -trial.user_attrs.get("best_val_loss", math.inf),
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if BEST_VALUE in trial.user_attrs
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
                    trial.state.name.lower(),
                    kept.get(BEST_VALUE, ""),
                    kept.get(BEST_EPOCH, ""),
                    len(trial.intermediate_values),
                    kept.get(SECONDS, ""),
                    kept.get(NODE, ""),
                    *(params.get(name, "") for name in names),
                    kept.get(REASON, ""),
                ]
            )
