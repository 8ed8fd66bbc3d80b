"""Draw the figures of a search, each with its text alternative and its caption.

It is long because the words stand beside the drawing that they describe.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.exceptions import ExperimentalWarning

from search.console.formatting import duration, percent
from search.reporting.charts.parameter_axis import (
    MISSING_POSITION,
    Axis,
    focus,
    parameter_axes,
)
from search.reporting.run_record import Record, TrialRecord, describe_trial
from search.reporting.style import (
    ACCENT,
    BAD,
    HALO,
    INK,
    MUTED,
    SMALL,
    WARM,
    WIDTH,
    Chart,
    add_legend,
    create_axes,
    set_titles,
    shorten,
    use_integer_ticks,
    use_percent_ticks,
)
from search.tuning.study import best_epoch

FINAL = "final model"
"""Legend of the trial that the final model was retrained from."""

MIN_TRIALS_FOR_IMPORTANCE = 4
"""Complete trials without which hyperparameter importance is not computed."""

_MAX_TRIALS_FOR_IMPORTANCE = 200  # trials; many more take minutes and give about the same
_TREES = 32  # of the forest that importances are computed from
_SURE_PER_PARAMETER = 10  # complete trials a parameter, below which importances are a guess
_MAX_LINES = 400  # in parallel coordinates; more would hide one another
_MIN_TRIALS_FOR_QUARTER = 8  # below it, the best quarter is the bold line


def chart_history(record: Record) -> Iterator[Chart]:
    """Yield the accuracies of the trials in their order, and how many epochs they reached."""
    trials, accuracies = record.trials, _accuracies(record)
    complete = [t.number for t in trials if t.state == "complete" and t.number in accuracies]
    failed = [t.number for t in trials if t.state == "failed"]
    if accuracies:
        best = max(accuracies, key=lambda number: accuracies[number])
        yield Chart(
            "history",
            draw_history(
                accuracies,
                complete,
                failed,
                _final_trial(record),
                chosen_name(record),
                {trial.number: describe_trial(trial) for trial in trials},
            ),
            f"Best validation accuracy of {len(accuracies)} trials in their order."
            f" The highest is {percent(accuracies[best], 2)}, of trial {best}.",
            "Each point is a trial at its best epoch. Only complete trials count for the best"
            " so far.",
        )
        yield from _chart_survival(trials)


def chart_parameters(record: Record) -> Iterator[Chart]:
    """Yield the parallel coordinates of the trials."""
    accuracies = _accuracies(record)
    if accuracies and record.distributions:
        shown = [t for t in record.trials if t.accuracy is not None]
        columns = parameter_axes(record.distributions, [t.params for t in shown])
        final = _final_trial(record)
        place = next((i for i, t in enumerate(shown) if t.number == final), None)
        yield Chart(
            "parallel_coordinates",
            draw_parallel_coordinates(
                columns, [accuracies[t.number] for t in shown], place, chosen_name(record)
            ),
            "Parallel coordinates: one line per trial, across "
            + ", ".join(column.name for column in columns)
            + ", to its validation accuracy. The table of trials has the same numbers.",
            "A line is a trial, from its parameters to its accuracy."
            + (" Blue is the best quarter." if len(shown) >= _MIN_TRIALS_FOR_QUARTER else "")
            + ("" if place is None else f" The bold one is the {chosen_name(record)}.")
            + (
                " Below an axis are trials without that parameter."
                if any(None in column.values for column in columns)
                else ""
            ),
        )


def chart_importances(record: Record) -> Iterator[Chart]:
    """Yield the importance of each parameter."""
    if found := importances(record):
        n = sum(t.state == "complete" and t.accuracy is not None for t in record.trials)
        few = n < _SURE_PER_PARAMETER * len(found)
        yield Chart(
            "importances",
            draw_importances(found),
            "Hyperparameter importance: "
            + ", ".join(f"{name} {importance:.0%}" for name, importance in found.items()),
            f"By functional ANOVA over {n} complete trials"
            + (": few, so take it as a hint." if few else ".")
            + _not_weighed(record),
        )


def chart_stages(record: Record) -> Iterator[Chart]:
    """Yield the time of each stage."""
    if stages := {name: s for name, s in (record.summary.stages or {}).items() if s >= 0.05}:
        yield Chart(
            "stages",
            draw_stages(stages),
            "Time of each stage: " + ", ".join(f"{n} {duration(s)}" for n, s in stages.items()),
            f"{duration(sum(stages.values()))} in all.",
        )


def _accuracies(record: Record) -> dict[int, float]:
    """Return the accuracy of each trial that has one, by number."""
    return {t.number: t.accuracy for t in record.trials if t.accuracy is not None}


def chosen_name(record: Record) -> str:
    """Return what the trial is called that cross-validation has chosen."""
    return "best finalist" if record.summary.is_ensemble else FINAL


def _final_trial(record: Record) -> int | None:
    """Return the trial of the final model, which cross-validation has chosen; None before that."""
    return record.best_trial.number if record.best_trial and record.summary.kfold else None


def importances(record: Record) -> dict[str, float]:
    """Return the importance of each parameter for the accuracy of complete trials.

    Functional ANOVA over a random forest (Hutter et al. 2014); nothing where trials are too few or
    all have the same accuracy.
    """
    complete = [t for t in record.trials if t.state == "complete"]
    if record.study is None or len(complete) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}
    frozen = record.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({best_epoch(trial).val_accuracy for trial in frozen}) < 2:
        return {}
    sample = optuna.create_study(direction="maximize")
    ranges = record.distributions  # one for each parameter: Optuna leaves out what has several
    for trial in frozen[:: math.ceil(len(frozen) / _MAX_TRIALS_FOR_IMPORTANCE)]:
        params = {name: value for name, value in trial.params.items() if name in ranges}
        own = {name: ranges[name] for name in params}
        sample.add_trial(
            optuna.trial.create_trial(value=trial.value, params=params, distributions=own)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        return dict(optuna.importance.get_param_importances(sample, evaluator=evaluator))


def _not_weighed(record: Record) -> str:
    """Say which parameters have no importance, as some trials do not have them."""
    complete = [trial for trial in record.trials if trial.state == "complete"]
    lacking = [n for n in record.distributions if any(n not in t.params for t in complete)]
    return f" Without {', '.join(lacking)}, which not every trial has." if lacking else ""


def _chart_survival(trials: Sequence[TrialRecord]) -> Iterator[Chart]:
    epochs = [len(trial.curve) for trial in trials if trial.curve]
    full_length = max(epochs, default=0)
    if len(epochs) < 2 or full_length < 2:
        return
    n_possible = len(epochs) * full_length
    yield Chart(
        "survival",
        draw_survival(epochs, full_length),
        f"Of {len(epochs)} trials, {epochs.count(full_length)} reached all {full_length} epochs.",
        f"Poor trials are pruned: {sum(epochs)} of {n_possible} epochs were trained,"
        f" {percent(sum(epochs) / n_possible, 0)}.",
    )


def draw_history(
    accuracies: Mapping[int, float],
    complete: Sequence[int],
    failed: Sequence[int],
    final: int | None,
    final_name: str = FINAL,
    titles: Mapping[int, str] | None = None,
) -> Figure:
    """Draw each trial's best validation accuracy, and the best complete one so far.

    Args:
        accuracies: By trial number, of those that ended an epoch.
        complete: Numbers of the complete trials.
        failed: Numbers of the failed trials.
        final: Number of the trial that the final model was retrained from.
        final_name: What the legend calls it.
        titles: By trial number, what the pointer shows.
    """
    titles = titles or {}
    figure, axes = create_axes("Best validation accuracy of each trial", "trial", "accuracy")
    low = focus(list(accuracies.values()))
    others = sorted(set(accuracies) - set(complete) - set(failed))
    for label, numbers, colour, face in (
        ("pruned", others, MUTED, "none"),
        ("complete", complete, ACCENT, ACCENT),
    ):
        shown = [n for n in numbers if accuracies[n] >= low]
        heights = [accuracies[n] for n in shown]
        points = axes.plot(shown, heights, "o", color=colour, mfc=face, ms=5.5, label=label)
        _name_trials(points, shown, titles)
    if below := [n for n in accuracies if accuracies[n] < low]:
        heights = [low] * len(below)
        points = axes.plot(below, heights, "v", color=MUTED, ms=5, label="below the scale")
        _name_trials(points, below, titles)
    if failed:
        points = axes.plot(failed, [low] * len(failed), "x", color=BAD, label="failed")
        _name_trials(points, failed, titles)
    if complete:
        running = np.maximum.accumulate([accuracies[n] for n in complete]).tolist()
        steps = [*complete, max([*accuracies, *failed])], [*running, running[-1]]
        axes.step(*steps, where="post", color=WARM, label="best so far")
    if final is not None and final in accuracies:
        spot = [final], [accuracies[final]]
        ring: Any = {"color": WARM, "markerfacecolor": "none", "ms": 11, "mew": 1.8}
        _name_trials(axes.plot(*spot, "o", label=final_name, **ring), [final], titles)
    top = max(accuracies.values(), default=1.0)
    pad = (top - low) * 0.06
    # Where all are alike, there is more to see below than above, which may be beyond 100%.
    axes.set_ylim(low - (pad or 0.01), top + (pad or 0.002))
    use_integer_ticks(axes)
    use_percent_ticks(axes.yaxis)
    add_legend(figure)
    return figure


def _name_trials(
    points: Sequence[Line2D], numbers: Sequence[int], titles: Mapping[int, str]
) -> None:
    """Give the points of trials their titles."""
    for line in points:
        if numbers and titles:
            set_titles(line, [titles[number] for number in numbers])


def draw_survival(epochs: Sequence[int], full_length: int) -> Figure:
    """Draw the number of trials that reached each epoch, given the epochs of each trial."""
    figure, axes = create_axes("Trials that reached each epoch", "epoch", "trials")
    x = range(1, full_length + 1)
    heights = [sum(n >= epoch for n in epochs) for epoch in x]
    bars = axes.bar(x, heights, color=ACCENT, width=0.75)
    if full_length <= 25:
        axes.bar_label(bars, padding=2, color=INK, fontsize=SMALL)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, max(heights, default=1) * 1.12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_parallel_coordinates(
    columns: Sequence[Axis], accuracies: Sequence[float], final: int | None, final_name: str = FINAL
) -> Figure:
    """Draw parallel coordinates: one line per trial across its parameters to its accuracy.

    Args:
        columns: The parameters; at least one.
        accuracies: One per trial; at least one.
        final: Index of the trial that the final model was retrained from.
        final_name: What the legend calls it.
    """
    low, high = focus(list(accuracies)), max(accuracies)
    seen = [max(low, accuracy) for accuracy in accuracies]
    accuracy = Axis("validation\naccuracy", seen, low=low, high=high, percent=True)
    columns = [*columns, accuracy]
    figure = Figure(figsize=(2 * WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Parallel coordinates", pad=30)
    axes.set_axis_off()
    lines = _lines(columns, accuracies, final)
    for kind, colour, width, darkest in (
        ("other trials", MUTED, 1.0, 0.45),
        ("best quarter", ACCENT, 1.4, 0.8),
        (FINAL, WARM, 2.6, 1.0),
    ):
        if lines[kind]:
            alpha = min(darkest, 35 / len(lines[kind]))  # where there are many, they add up
            style: Any = {"colors": colour, "linewidths": width, "alpha": alpha}
            name = final_name if kind == FINAL else kind
            axes.add_collection(LineCollection(lines[kind], label=name, **style))
    small: Any = {"fontsize": SMALL}
    for x, column in enumerate(columns):
        axes.plot([x, x], [0, 1], color=MUTED, linewidth=1)
        axes.text(x, 1.06, column.name, ha="center", va="bottom", weight="bold", **small)
        for y, text in column.ticks():
            axes.plot([x - 0.02, x], [y, y], color=MUTED, linewidth=1)
            axes.text(x - 0.04, y, text, ha="right", va="center", color=MUTED, gid=HALO, **small)
    axes.set_xlim(-0.5, len(columns) - 0.9)
    has_missing = any(None in column.values for column in columns)
    axes.set_ylim(MISSING_POSITION - 0.05 if has_missing else -0.05, 1.05)
    add_legend(figure)
    return figure


def _lines(
    columns: Sequence[Axis], accuracies: Sequence[float], final: int | None
) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the trials' lines by kind, the best last."""
    order = np.argsort(accuracies, kind="stable")[::-1][:_MAX_LINES].tolist()
    best = set(order[: max(1, len(order) // 4)])
    # Jitter, so that trials of the same choice do not hide one another.
    jitter = np.random.default_rng(0).uniform(-0.02, 0.02, (len(accuracies), len(columns)))
    lines: dict[str, list[list[tuple[float, float]]]]
    lines = {"other trials": [], "best quarter": [], FINAL: []}
    for index in reversed(order):
        kind = FINAL if index == final else "best quarter" if index in best else "other trials"
        places = [c.position(c.values[index]) for c in columns]
        lines[kind].append(
            [
                (float(x), place + bool(column.choices) * jitter[index, x])
                for x, (column, place) in enumerate(zip(columns, places, strict=True))
            ]
        )
    return lines


def draw_importances(importances: Mapping[str, float]) -> Figure:
    """Draw hyperparameter importances, which sum to 1."""
    return _bars("Hyperparameter importance", importances, lambda importance: f"{importance:.0%}")


def draw_stages(seconds: Mapping[str, float]) -> Figure:
    """Draw the time of each stage."""
    return _bars("Time of each stage", seconds, duration)


def _bars(title: str, values: Mapping[str, float], label: Callable[[float], str]) -> Figure:
    """Draw labelled horizontal bars."""
    figure, axes = create_axes(title, "", "")
    figure.set_figheight(0.9 + 0.36 * len(values))
    bars = axes.barh([shorten(name) for name in values], list(values.values()), color=ACCENT)
    axes.bar_label(bars, [label(v) for v in values.values()], padding=4, color=INK, fontsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values.values(), default=1.0) * 1.18 or 1.0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure
