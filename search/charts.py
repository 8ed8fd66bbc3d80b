"""Which figures a run's record gives, each with what it shows in words."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from markupsafe import Markup
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning

from search import canvas
from search.model_figures import (
    draw_agreement,
    draw_confusion,
    draw_curves,
    draw_reliability,
    expected_calibration_error,
)
from search.record import Record, TrialRecord
from search.search_figures import (
    Axis,
    draw_history,
    draw_importances,
    draw_parallel_coordinates,
    draw_stages,
    draw_survival,
)
from search.wording import duration, interval, percent

FEWEST_FOR_IMPORTANCE = 4
"""Full-length trials without which nothing can be said of what mattered."""

_MOST_FOR_IMPORTANCE = 200  # trials; many more take minutes and tell the same
_TREES = 32  # of the forest that importances are read from
_SURE_PER_PARAMETER = 10  # full-length trials a parameter, below which importances are a guess
_WIDE_CLASSES = 12  # a confusion matrix of more classes has the page's whole width


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        name: Of its files under `figures/`.
        svg: What the page shows.
        alt: What it says, for who cannot see it.
        caption: How to read it.
        wide: Whether it needs the page's whole width.
    """

    name: str
    svg: Markup
    alt: str
    caption: str
    wide: bool


Drawn = tuple[str, Figure, str, str]
"""A figure's name, the figure, what it says and how to read it."""


def draw_charts(record: Record, folder: Path) -> dict[str, Chart]:
    """Draw every figure that the record has the numbers for, and save each in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Chart] = {}
    with canvas.style():
        for drawn in (*_search(record), *_winner(record), *_evaluation(record)):
            name, figure, alt, caption = drawn
            svg = Markup(canvas.save(figure, folder, name))  # noqa: S704 - matplotlib escapes texts
            wide = figure.get_figwidth() > 1.3 * canvas.WIDTH
            charts[name] = Chart(name, svg, alt, caption, wide)
    return charts


def importances(record: Record) -> dict[str, float]:
    """Return how much each parameter explains of the full-length trials' accuracy.

    Functional ANOVA over a random forest (Hutter et al. 2014); nothing where trials are too few or
    all came to the same.
    """
    complete = [t for t in record.trials if t.state == "complete"]
    if record.study is None or len(complete) < FEWEST_FOR_IMPORTANCE:
        return {}
    study = record.study
    frozen = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in frozen}) < 2:
        return {}
    sample = optuna.create_study(direction="maximize")
    sample.add_trials(frozen[:: math.ceil(len(frozen) / _MOST_FOR_IMPORTANCE)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        return dict(optuna.importance.get_param_importances(sample, evaluator=evaluator))


def _search(record: Record) -> Iterator[Drawn]:
    trials = record.trials
    judged = {t.number: t.accuracy for t in trials if t.accuracy is not None}
    complete = [t.number for t in trials if t.state == "complete" and t.number in judged]
    failed = [t.number for t in trials if t.state == "failed"]
    winner = record.winner.number if record.winner else None
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


def _winner(record: Record) -> Iterator[Drawn]:
    best, winner = record.summary.get("best"), record.winner
    if not best:
        return
    if winner is not None and len(winner.curve) > 1:
        curve = winner.curve
        for quantity, train, val, caption in (
            (
                "accuracy",
                [e.train_accuracy for e in curve],
                [e.val_accuracy for e in curve],
                "Training pictures are augmented and dropout is on, so training may look worse"
                " than validation.",
            ),
            (
                "loss",
                [e.train_loss for e in curve],
                [e.val_loss for e in curve],
                "Lower is better. A validation loss that rises while the training loss falls would"
                " be overfitting.",
            ),
        ):
            yield (
                f"winner_{quantity}",
                draw_curves([e.epoch for e in curve], train, val, best.get("epoch"), quantity),
                f"Over {len(curve)} epochs, {quantity} went from {train[0]:.3g} to {train[-1]:.3g}"
                f" in training, and from {val[0]:.3g} to {val[-1]:.3g} in validation.",
                caption,
            )
    folds = record.folds.get(best["trial"], ())
    judged = {
        title: (part["accuracy"], tuple(part["accuracy_ci95"]))
        for title, part in (
            ("held-out pictures", record.summary.get("test")),
            ("pictures from elsewhere", record.summary.get("external")),
        )
        if part and part.get("accuracy") is not None
    }
    if len(folds) > 1:
        words = [
            f"{t}: {percent(a)}, 95 % interval {interval(ci)}" for t, (a, ci) in judged.items()
        ]
        yield (
            "agreement",
            draw_agreement(best["val_accuracy"], folds, judged),
            f"The search said {percent(best['val_accuracy'])}, the folds say"
            f" {percent(statistics.mean(folds))} on average. " + ". ".join(words),
            "The search chose by its number, so that one flatters. No fold is judged on pictures it"
            " was trained on. Bars are 95 % intervals.",
        )


def _evaluation(record: Record) -> Iterator[Drawn]:
    for part, what in (("test", "held-out pictures"), ("external", "pictures from elsewhere")):
        scores: Mapping[str, Any] = record.summary.get(part) or {}
        if "confusion" not in scores:
            continue
        classes = [row["class"] for row in scores["per_class"]]
        yield (
            f"confusion_{part}",
            draw_confusion(scores["confusion"], classes, f"Confusions, {what}"),
            f"Confusion matrix of {what}: {percent(scores['accuracy'])} lie on the diagonal.",
            "A row is a true class, a column what the model said. Blue is right, red is wrong; the"
            " deeper, the larger the share of the row.",
        )
    known = [p for p in record.test if p.correct is not None]
    if known:
        sure, right = [p.ranked[0][1] for p in known], [bool(p.correct) for p in known]
        error = expected_calibration_error(sure, right)
        yield (
            "reliability",
            draw_reliability(sure, right),
            f"Reliability diagram of the held-out pictures: the expected calibration error is"
            f" {percent(error)}.",
            "On the dashed line, pictures that the model is 80 % sure of are right 80 times in 100."
            f" It is {percent(error)} off on average. Numbers count pictures.",
        )
