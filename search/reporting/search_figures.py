"""Figures of how a search went: numbers in, a Figure out. See `search.reporting.style`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.console.formatting import duration
from search.reporting.style import (
    ACCENT,
    BAD,
    HALO,
    INK,
    MUTED,
    SMALL,
    WARM,
    WIDTH,
    count_in_whole_numbers,
    create_axes,
    put_legend_below,
    read_as_percent,
    short,
)

_MAX_LINES = 400  # in parallel coordinates; more would hide one another
_MAX_WHOLE_TICKS = 8
_TICK_DISTANCE = 0.07  # of an axis's length, below which numbers would touch


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates.

    Attributes:
        name: Of the parameter.
        values: One a trial.
        choices: All that a categorical parameter may be; empty for a number.
        low: Of a number's range.
        high: Of a number's range.
        log: Whether the range is logarithmic.
        whole: Whether only whole numbers are in it.
        share: Whether it is read as a percentage.
    """

    name: str
    values: Sequence[object]
    choices: tuple[object, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    share: bool = False

    def position(self, value: object) -> float:
        """Return where a value lies, in [0, 1]."""
        if self.choices:
            last = len(self.choices) - 1
            return self.choices.index(value) / last if last else 0.5
        low, high, number = self.low, self.high, float(str(value))
        if self.log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return a few positions with what is written beside them."""
        if self.choices:
            return [(self.position(choice), short(str(choice))) for choice in self.choices]
        placed: list[tuple[float, str]] = []
        for mark in self._marks():
            if not placed or self.position(mark) - placed[-1][0] > _TICK_DISTANCE:
                text = f"{mark:.1%}" if self.share else f"{mark:.3g}"
                placed.append((self.position(mark), text))
        return placed

    def _marks(self) -> list[float]:
        """Return the numbers to write, ascending: both ends and what divides them well."""
        low, high = self.low, self.high
        if self.log:
            powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
            return sorted({low, *(10.0**power for power in powers), high})
        if self.whole and high - low <= _MAX_WHOLE_TICKS:
            return [float(number) for number in range(int(low), int(high) + 1)]
        middle = (low + high) / 2
        return [low, round(middle) if self.whole else middle, high]


def draw_history(
    accuracies: Mapping[int, float],
    complete: Sequence[int],
    failed: Sequence[int],
    winner: int | None,
) -> Figure:
    """Draw each trial's best accuracy, and the best full-length one so far.

    Args:
        accuracies: By trial number, of those that ended an epoch.
        complete: The trials that reached the full length.
        failed: The trials that failed.
        winner: The trial whose folds are the model.
    """
    figure, axes = create_axes("Accuracy of each trial", "trial", "validation accuracy")
    low = _focus(list(accuracies.values()))
    stopped = sorted(set(accuracies) - set(complete) - set(failed))
    for label, numbers, colour, face in (
        ("stopped early", stopped, MUTED, "none"),
        ("complete", complete, ACCENT, ACCENT),
    ):
        shown = [n for n in numbers if accuracies[n] >= low]
        heights = [accuracies[n] for n in shown]
        axes.plot(shown, heights, "o", color=colour, markerfacecolor=face, ms=5.5, label=label)
    if below := [n for n in accuracies if accuracies[n] < low]:
        axes.plot(below, [low] * len(below), "v", color=MUTED, ms=5, label="below the scale")
    if failed:
        axes.plot(failed, [low] * len(failed), "x", color=BAD, label="failed")
    if complete:
        running = np.maximum.accumulate([accuracies[n] for n in complete]).tolist()
        steps = [*complete, max([*accuracies, *failed])], [*running, running[-1]]
        axes.step(*steps, where="post", color=WARM, label="best so far")
    if winner is not None and winner in accuracies:
        spot = [winner], [accuracies[winner]]
        axes.plot(*spot, "o", color=WARM, markerfacecolor="none", ms=11, mew=1.8, label="winner")
    top = max(accuracies.values(), default=1.0)
    pad = (top - low) * 0.06
    # Where all are alike, there is more to see below them than above, which may be beyond 100 %.
    axes.set_ylim(low - (pad or 0.01), top + (pad or 0.002))
    count_in_whole_numbers(axes)
    read_as_percent(axes.yaxis)
    put_legend_below(figure)
    return figure


def draw_survival(epochs: Sequence[int], full_length: int) -> Figure:
    """Draw how many trials ended each epoch, given the number that each ended."""
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
    columns: Sequence[Axis], accuracies: Sequence[float], winner: int | None
) -> Figure:
    """Draw a line a trial across its parameters to its accuracy.

    Args:
        columns: The parameters; at least one.
        accuracies: One a trial; at least one.
        winner: Index of the trial whose folds are the model.
    """
    low, high = _focus(list(accuracies)), max(accuracies)
    seen = [max(low, accuracy) for accuracy in accuracies]
    score = Axis("validation\naccuracy", seen, low=low, high=high, share=True)
    columns = [*columns, score]
    figure = Figure(figsize=(2 * WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title("What was tried, and how well it did", pad=30)
    axes.set_axis_off()
    lines = _lines(columns, accuracies, winner)
    for kind, colour, width, darkest in (
        ("other trials", MUTED, 1.0, 0.45),
        ("best quarter", ACCENT, 1.4, 0.8),
        ("winner", WARM, 2.6, 1.0),
    ):
        if lines[kind]:
            alpha = min(darkest, 35 / len(lines[kind]))  # where there are many, they add up
            style: Any = {"colors": colour, "linewidths": width, "alpha": alpha}
            axes.add_collection(LineCollection(lines[kind], label=kind, **style))
    small: Any = {"fontsize": SMALL}
    for x, column in enumerate(columns):
        axes.plot([x, x], [0, 1], color=MUTED, linewidth=1)
        axes.text(x, 1.06, column.name, ha="center", va="bottom", weight="bold", **small)
        for y, text in column.ticks():
            axes.plot([x - 0.02, x], [y, y], color=MUTED, linewidth=1)
            axes.text(x - 0.04, y, text, ha="right", va="center", color=MUTED, gid=HALO, **small)
    axes.set_xlim(-0.5, len(columns) - 0.9)
    axes.set_ylim(-0.05, 1.05)
    put_legend_below(figure)
    return figure


def _lines(
    columns: Sequence[Axis], accuracies: Sequence[float], winner: int | None
) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the trials' lines by kind, the best last."""
    order = np.argsort(accuracies, kind="stable")[::-1][:_MAX_LINES].tolist()
    best = set(order[: max(1, len(order) // 4)])
    # Trials that share a choice lie side by side rather than on top of one another.
    spread = np.random.default_rng(0).uniform(-0.02, 0.02, (len(accuracies), len(columns)))
    lines: dict[str, list[list[tuple[float, float]]]]
    lines = {"other trials": [], "best quarter": [], "winner": []}
    for index in reversed(order):
        kind = "winner" if index == winner else "best quarter" if index in best else "other trials"
        places = [c.position(c.values[index]) for c in columns]
        lines[kind].append(
            [
                (float(x), place + bool(column.choices) * spread[index, x])
                for x, (column, place) in enumerate(zip(columns, places, strict=True))
            ]
        )
    return lines


def draw_importances(importances: Mapping[str, float]) -> Figure:
    """Draw how much each parameter explains of the accuracy; shares sum to 1."""
    return _bars("What mattered", importances, lambda share: f"{share:.0%}")


def draw_stages(seconds: Mapping[str, float]) -> Figure:
    """Draw how long each stage took."""
    return _bars("Where the time went", seconds, duration)


def _bars(title: str, values: Mapping[str, float], wording: Callable[[float], str]) -> Figure:
    """Draw named lengths, each with its value in words."""
    figure, axes = create_axes(title, "", "")
    figure.set_figheight(0.9 + 0.36 * len(values))
    bars = axes.barh([short(name) for name in values], list(values.values()), color=ACCENT)
    axes.bar_label(
        bars, [wording(v) for v in values.values()], padding=4, color=INK, fontsize=SMALL
    )
    axes.invert_yaxis()
    axes.set_xlim(0, max(values.values(), default=1.0) * 1.18 or 1.0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure


def _focus(accuracies: Sequence[float]) -> float:
    """Return where a scale begins, so that a few poor trials do not flatten the good ones."""
    if not accuracies:
        return 0.0
    quarter, best = float(np.quantile(accuracies, 0.25)), max(accuracies)
    return max(min(accuracies), quarter - 1.5 * (best - quarter))
