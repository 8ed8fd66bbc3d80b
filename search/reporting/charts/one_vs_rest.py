"""Draw ROC and precision-recall curves of the test set, each class against the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import auc as area_under
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from search.evaluation.predictions import LabelledProbabilities
from search.reporting.run_record import Record
from search.reporting.style import (
    ACCENT,
    MUTED,
    WARM,
    Chart,
    add_legend,
    create_axes,
    set_titles,
    shorten,
    use_percent_ticks,
)

_MAX_CLASSES = 20  # of which each has a curve; more would hide one another
_GRID = np.linspace(0, 1, 201)  # where the curves of the classes are averaged


@dataclass(frozen=True, eq=False)
class ClassCurves:
    """The curves of one class against the others.

    Attributes:
        false_positive_rate: [m], ascending.
        true_positive_rate: [m], at these false positive rates.
        recall: [k], ascending.
        precision: [k], the highest at this recall or a higher one.
        roc_auc: Area under the ROC curve.
        average_precision: Mean of the precisions, weighted by the recall that each adds.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    roc_auc: float
    average_precision: float


def curves_by_class(predictions: LabelledProbabilities | None) -> dict[str, ClassCurves]:
    """Return the curves of each class of which, and of others, there are images."""
    found: dict[str, ClassCurves] = {}
    if predictions is None:
        return found
    for place, name in enumerate(predictions.classes):
        is_class, values = predictions.labels == place, predictions.probabilities[:, place]
        if not is_class.any() or is_class.all():
            continue
        false_positives, true_positives, _ = roc_curve(is_class, values)
        precision, recall, _ = precision_recall_curve(is_class, values, drop_intermediate=True)
        highest = np.maximum.accumulate(precision)
        highest[-1] = highest[-2]  # at recall 0 it is 1 by convention
        found[name] = ClassCurves(
            false_positives,
            true_positives,
            recall[::-1],
            highest[::-1],
            float(area_under(false_positives, true_positives)),
            float(average_precision_score(is_class, values)),
        )
    return found


def chart_one_vs_rest(record: Record) -> Iterator[Chart]:
    """Yield the ROC curves and the precision-recall curves."""
    curves = curves_by_class(record.test_probabilities)
    if record.test_probabilities is None or not curves:
        return
    n_missing = len(record.test_probabilities.classes) - len(curves)
    missing = (
        f" {n_missing} {'class has' if n_missing == 1 else 'classes have'} no test images, so no"
        " curve and no part in the mean."
        if n_missing
        else ""
    )
    has_lines = 1 < len(curves) <= _MAX_CLASSES
    lines = " A thin curve is a class; the pointer shows its name." if has_lines else ""
    test = record.summary.test
    macro_auc = float(np.mean([one.roc_auc for one in curves.values()]))
    if test is not None and np.isfinite(test.roc_auc):
        macro_auc = test.roc_auc  # of unrounded probabilities
    macro_precision = float(np.mean([one.average_precision for one in curves.values()]))
    worst = min(curves, key=lambda name: curves[name].roc_auc)
    yield Chart(
        "roc",
        draw_roc(curves, worst),
        f"ROC curves of the test set, each class against the others: mean area {macro_auc:.3f}, the"
        f" smallest {curves[worst].roc_auc:.3f}, of {worst}.",
        f"Mean area under the curves (macro ROC AUC) {macro_auc:.3f}.{lines}{missing}",
    )
    worst = min(curves, key=lambda name: curves[name].average_precision)
    yield Chart(
        "precision_recall",
        draw_precision_recall(curves, worst),
        "Precision-recall curves of the test set, each class against the others: mean average"
        f" precision {macro_precision:.3f}, the lowest {curves[worst].average_precision:.3f}, of"
        f" {worst}.",
        f"Mean average precision {macro_precision:.3f}. Precision is the highest at a recall or"
        f" above it.{lines}{missing}",
    )


def draw_roc(curves: Mapping[str, ClassCurves], worst: str) -> Figure:
    """Draw the ROC curves of the classes, and their mean.

    Args:
        curves: By class, at least one.
        worst: The class that is emphasised.
    """
    mean = np.zeros_like(_GRID)
    for one in curves.values():
        mean += np.interp(_GRID, one.false_positive_rate, one.true_positive_rate) / len(curves)
    mean[0] = 0.0
    by_class = {
        name: (one.false_positive_rate, one.true_positive_rate, f"ROC AUC {one.roc_auc:.3f}")
        for name, one in curves.items()
    }
    figure = _draw("ROC curves", "false positive rate", "true positive rate", by_class, mean, worst)
    figure.axes[0].plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1)
    return figure


def draw_precision_recall(curves: Mapping[str, ClassCurves], worst: str) -> Figure:
    """Draw the precision-recall curves of the classes, and their mean; see `draw_roc`."""
    mean = np.zeros_like(_GRID)
    for one in curves.values():
        mean += one.precision[np.searchsorted(one.recall, _GRID)] / len(curves)
    by_class = {
        name: (one.recall, one.precision, f"average precision {one.average_precision:.3f}")
        for name, one in curves.items()
    }
    return _draw(
        "Precision-recall curves", "recall", "precision", by_class, mean, worst, "steps-pre"
    )


def _draw(
    title: str,
    x_label: str,
    y_label: str,
    by_class: Mapping[str, tuple[np.ndarray, np.ndarray, str]],
    mean: np.ndarray,
    worst: str,
    drawstyle: Literal["default", "steps-pre"] = "default",
) -> Figure:
    figure, axes = create_axes(title, x_label, y_label)
    few = len(by_class) <= _MAX_CLASSES
    shown = sorted(by_class, key=lambda name: name == worst) if few else [worst]
    for name in shown if len(by_class) > 1 else []:
        x, y, text = by_class[name]
        is_worst = name == worst
        (line,) = axes.plot(
            x,
            y,
            drawstyle=drawstyle,
            color=WARM if is_worst else MUTED,
            linewidth=1.4 if is_worst else 0.9,
            label=f"lowest: {shorten(name)}" if is_worst else None,
        )
        set_titles(line, [f"{name}: {text}"])
    axes.plot(_GRID, mean, color=ACCENT, linewidth=2.4, label="mean of the classes")
    use_percent_ticks(axes.xaxis)
    use_percent_ticks(axes.yaxis)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.04)
    add_legend(figure)
    return figure
