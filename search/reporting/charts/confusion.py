"""Draw confusion matrices, in images and in percent of the true class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from search.console.formatting import percent
from search.reporting.run_record import Record
from search.reporting.style import ACCENT, BAD, INK, ON_ACCENT, SMALL, WIDTH, Chart, shorten

MAX_CLASSES = 40
"""Classes of a confusion matrix that can still be read; of more, the most confused are drawn."""

_MAX_FLAT_CLASSES = 6  # their cells may be wider than high, which keeps the page short
_MAX_NUMBERED_CLASSES = 30  # cells of larger confusion matrices are too small for numbers


def chart_confusions(record: Record) -> Iterator[Chart]:
    """Yield the confusion matrices."""
    external = record.summary.external
    for part, name, scores in (
        ("test", "test set", record.summary.test),
        ("external", "external test set", external.scores if external else None),
    ):
        if scores is None:
            continue
        classes = [row.name for row in scores.per_class]
        shown = most_confused_classes(scores.confusion, MAX_CLASSES)
        n_others = len(classes) - len(shown)
        title = f"Confusion matrix, {name}"
        others = f" {n_others} classes with fewer confusions are not shown." if n_others else ""
        title = f"{title}: the {len(shown)} most confused classes" if n_others else title
        matrix = [[scores.confusion[i][j] for j in shown] for i in shown]
        for suffix, totals, numbers in (
            ("", None, "images"),
            ("_normalised", [sum(scores.confusion[i]) for i in shown], "percent of the true class"),
        ):
            yield Chart(
                f"confusion_{part}{suffix}",
                draw_confusion(matrix, [classes[i] for i in shown], title, totals),
                f"Confusion matrix of the {name}, in {numbers}: {percent(scores.accuracy)} of all"
                f" images are correct, and lie on the diagonal.{others}",
                f"Rows are true classes, columns predicted ones; numbers are {numbers}. Blue is"
                " correct, red is wrong; the deeper, the larger the fraction of the"
                f" row.{others}",
            )


def most_confused_classes(confusion: Sequence[Sequence[int]] | np.ndarray, n: int) -> list[int]:
    """Return the n classes with the most confusions, as row or as column, in their own order."""
    counts = np.array(confusion)  # a copy
    np.fill_diagonal(counts, 0)
    order = np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")
    return sorted(order[:n].tolist())


def draw_confusion(
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    title: str,
    totals: Sequence[int] | None = None,
) -> Figure:
    """Draw a confusion matrix; the depth of a cell is its fraction of the row's true class.

    Args:
        matrix: Counts; rows are the true class.
        classes: Their names.
        title: Title of the figure.
        totals: Images of each row's class, of which cells are percentages; None writes the counts.
    """
    counts = np.asarray(matrix)
    n = len(classes)
    numbered = n <= _MAX_NUMBERED_CLASSES
    side = min(14.0, max(WIDTH, 1.6 + n * (0.36 if numbered else 0.16)))
    height = 0.9 * side if n > _MAX_FLAT_CLASSES else 0.72 * side
    figure = Figure(figsize=(side, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, column in np.argwhere(counts):
        fraction = fractions[row, column]
        colour = ACCENT if row == column else BAD
        alpha = max(0.15, fraction)  # a single mistake among a thousand must be visible
        cell = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(cell, 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
        if numbered:
            ink = ON_ACCENT if fraction > 0.5 else INK
            text = str(counts[row, column])
            if totals is not None:
                text = f"{100 * counts[row, column] / totals[row]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=SMALL)
    names, size = [shorten(name) for name in classes], SMALL if numbered else 7
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
