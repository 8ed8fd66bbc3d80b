"""Figures of how good the model is: numbers in, a Figure out. See `search.reporting.style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from search.evaluation.calibration import reliability_bins
from search.reporting.style import (
    ACCENT,
    BAD,
    HEIGHT,
    INK,
    MUTED,
    ON_ACCENT,
    SMALL,
    WARM,
    WIDTH,
    count_in_whole_numbers,
    create_axes,
    put_legend_below,
    read_as_percent,
    short,
)

_MAX_NUMBERED_CLASSES = 30  # cells of larger confusion matrices are too small for numbers


def draw_curves(
    epochs: Sequence[int],
    train: Sequence[float],
    val: Sequence[float],
    best_epoch: int | None,
    quantity: str,
) -> Figure:
    """Draw a trial's training and validation curve of one quantity."""
    figure, axes = create_axes(f"{quantity.capitalize()} by epoch", "epoch", quantity)
    axes.plot(epochs, train, "o-", color=MUTED, markersize=4, label="training")
    axes.plot(epochs, val, "o-", color=ACCENT, markersize=4, label="validation")
    if best_epoch is not None:
        axes.axvline(best_epoch, color=WARM, linestyle="--", label="best epoch")
    count_in_whole_numbers(axes)
    if quantity == "accuracy":
        read_as_percent(axes.yaxis)
    put_legend_below(figure)
    return figure


def draw_accuracies(
    search: float,
    folds: Sequence[float],
    judged: Mapping[str, tuple[float, tuple[float, float]]],
) -> Figure:
    """Draw all that is known of the winner's accuracy, one source a row.

    Args:
        search: The accuracy that the search chose it by.
        folds: The accuracy of each fold.
        judged: By what it was judged on, its accuracy with a 95 % interval.
    """
    rows = ["the search said", "folds say", *judged]
    figure, axes = create_axes("How sure is the accuracy?", "accuracy", "")
    axes.plot([search], [0], "D", color=MUTED, markersize=7)
    axes.plot(folds, [1] * len(folds), "o", color=ACCENT, alpha=0.55, markersize=7)
    if folds:
        axes.plot([np.mean(folds)], [1], "|", color=INK, markersize=18, markeredgewidth=2)
    for row, (accuracy, (low, high)) in enumerate(judged.values(), start=2):
        axes.plot([low, high], [row, row], color=WARM, linewidth=2.5, solid_capstyle="butt")
        axes.plot([accuracy], [row], "o", color=WARM, markersize=7)
    read_as_percent(axes.xaxis)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix; a cell's depth is its share of the row's true class."""
    counts = np.asarray(matrix)
    n = len(classes)
    numbered = n <= _MAX_NUMBERED_CLASSES
    side = min(14.0, max(WIDTH, 1.6 + n * (0.36 if numbered else 0.16)))
    figure = Figure(figsize=(side, 0.9 * side), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, column in np.argwhere(counts):
        share = shares[row, column]
        colour = ACCENT if row == column else BAD
        # A single mistake among a thousand must still be seen.
        cell = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(cell, 1, 1, facecolor=colour, alpha=max(0.15, share), linewidth=0))
        if numbered:
            ink = ON_ACCENT if share > 0.5 else INK
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=SMALL)
    names, size = [short(name) for name in classes], SMALL if numbered else 7
    upright = numbered and all(len(name) <= 2 for name in names)
    axes.set_xticks(range(n), names, rotation=0 if upright else 90, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    return figure


def draw_reliability(confidences: Sequence[float], correct: Sequence[bool]) -> Figure:
    """Draw how often the model is right against how sure it is, in bins."""
    figure, axes = create_axes(
        "Does it know when it is sure?", "said probability", "share that is right"
    )
    axes.plot([0, 1], [0, 1], "--", color=MUTED, label="ideal")
    bins = reliability_bins(confidences, correct)
    x = [one["confidence"] for one in bins]
    y = [one["accuracy"] for one in bins]
    sizes = [one["n"] for one in bins]
    axes.scatter(x, y, s=[30 + 170 * size / max(sizes) for size in sizes], color=ACCENT, alpha=0.75)
    beside: Any = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL}
    for share, accuracy, size in zip(x, y, sizes, strict=True):
        axes.annotate(str(size), (share, accuracy), (0, 9 if accuracy < 0.5 else -18), **beside)
    read_as_percent(axes.xaxis)
    read_as_percent(axes.yaxis)
    axes.set_xlim(-0.02, 1.04)
    axes.set_ylim(-0.04, 1.06)
    return figure


def draw_ablation(rungs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw training and validation accuracy by epoch, a panel a rung.

    Args:
        rungs: By name, the accuracies in training and in validation, an epoch each.
    """
    figure = Figure(figsize=(2.1 * WIDTH, HEIGHT), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(rungs), sharey=True, sharex=True))
    for axes, (name, (train, val)) in zip(panels, rungs.items(), strict=True):
        epochs = range(1, len(train) + 1)
        axes.plot(epochs, train, "o-", color=MUTED, markersize=3, label="training")
        axes.plot(epochs, val, "o-", color=ACCENT, markersize=3, label="validation")
        axes.set_title(name.replace(" from ", " from\n"))
        axes.set_xlabel("epoch")
        count_in_whole_numbers(axes)
    panels[0].set_ylabel("accuracy")
    read_as_percent(panels[0].yaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=SMALL)
    return figure
