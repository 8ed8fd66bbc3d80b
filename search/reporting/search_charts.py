"""Which figures tell how a search went, each with what it shows in words."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning

from search.console.formatting import duration, percent
from search.reporting.run_record import Record, TrialRecord
from search.reporting.search_figures import (
    Axis,
    draw_history,
    draw_importances,
    draw_parallel_coordinates,
    draw_stages,
    draw_survival,
)
from search.reporting.style import Drawn

MIN_TRIALS_FOR_IMPORTANCE = 4
"""Full-length trials without which nothing can be said of what mattered."""

_MAX_TRIALS_FOR_IMPORTANCE = 200  # trials; many more take minutes and tell the same
_TREES = 32  # of the forest that importances are read from
_SURE_PER_PARAMETER = 10  # full-length trials a parameter, below which importances are a guess


def importances(record: Record) -> dict[str, float]:
    """Return how much each parameter explains of the full-length trials' accuracy.

    Functional ANOVA over a random forest (Hutter et al. 2014); nothing where trials are too few or
    all came to the same.
    """
    complete = [t for t in record.trials if t.state == "complete"]
    if record.study is None or len(complete) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}
    study = record.study
    frozen = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in frozen}) < 2:
        return {}
    sample = optuna.create_study(direction="maximize")
    sample.add_trials(frozen[:: math.ceil(len(frozen) / _MAX_TRIALS_FOR_IMPORTANCE)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        return dict(optuna.importance.get_param_importances(sample, evaluator=evaluator))


def chart_search(record: Record) -> Iterator[Drawn]:
    """Yield the trials, the rungs, the parameters and the stages."""
    trials = record.trials
    judged = {t.number: t.accuracy for t in trials if t.accuracy is not None}
    complete = [t.number for t in trials if t.state == "complete" and t.number in judged]
    failed = [t.number for t in trials if t.state == "failed"]
    # Before the folds have spoken there is no winner.
    winner = record.winner.number if record.winner and "kfold" in record.summary else None
    if judged:
        best = max(judged, key=lambda number: judged[number])
        yield (
            "history",
            draw_history(judged, complete, failed, winner),
            f"Validation accuracy of {len(judged)} trials in their order."
            f" The highest is {percent(judged[best], 2)}, of trial {best}.",
            "Each point is a trial at its best epoch. Only full-length trials count for the best"
            " so far.",
        )
        yield from _survival(trials)
    if judged and record.distributions:
        shown = [t for t in trials if t.accuracy is not None]
        columns = _columns(record, shown)
        place = next((i for i, t in enumerate(shown) if t.number == winner), None)
        yield (
            "parallel_coordinates",
            draw_parallel_coordinates(columns, [judged[t.number] for t in shown], place),
            "Parallel coordinates: a line a trial, across "
            + ", ".join(column.name for column in columns)
            + ", to its validation accuracy. The table of trials has the same numbers.",
            "A line is a trial, from its parameters to its accuracy. Blue lines show where good"
            " trials gather" + ("." if place is None else ", the bold one what the winner is."),
        )
    if shares := importances(record):
        n, few = len(complete), len(complete) < _SURE_PER_PARAMETER * len(shares)
        yield (
            "importances",
            draw_importances(shares),
            "Share of the differences in accuracy that each parameter explains: "
            + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
            f"From {n} full-length trials" + (": few, so take it as a hint." if few else "."),
        )
    if stages := {name: s for name, s in record.summary.get("stages", {}).items() if s >= 0.05}:
        yield (
            "stages",
            draw_stages(stages),
            "Time of each stage: " + ", ".join(f"{n} {duration(s)}" for n, s in stages.items()),
            f"{duration(sum(stages.values()))} in all.",
        )


def _survival(trials: Sequence[TrialRecord]) -> Iterator[Drawn]:
    epochs = [len(trial.curve) for trial in trials if trial.curve]
    full_length = max(epochs, default=0)
    if len(epochs) < 2 or full_length < 2:
        return
    share = sum(epochs) / (len(epochs) * full_length)
    yield (
        "survival",
        draw_survival(epochs, full_length),
        f"Of {len(epochs)} trials, {epochs.count(full_length)} ran all {full_length} epochs.",
        f"Poor trials were stopped early: {sum(epochs)} of {len(epochs) * full_length} epochs were"
        f" trained, {percent(share, 0)}.",
    )


def _columns(record: Record, trials: Sequence[TrialRecord]) -> list[Axis]:
    """Return an axis for each parameter that all of these trials have."""
    columns = []
    for name, distribution in record.distributions.items():
        if any(name not in trial.params for trial in trials):
            continue
        values = [trial.params[name] for trial in trials]
        if isinstance(distribution, CategoricalDistribution):
            columns.append(Axis(name, values, choices=tuple(distribution.choices)))
        else:
            bounds: Any = distribution
            whole = isinstance(distribution, IntDistribution)
            columns.append(Axis(name, values, (), bounds.low, bounds.high, bounds.log, whole=whole))
    return columns
