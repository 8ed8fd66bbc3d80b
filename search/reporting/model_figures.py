"""Draw the figures of a model, each with its text alternative and its caption."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from search.console.formatting import interval, percent
from search.evaluation.calibration import expected_calibration_error, reliability_bins
from search.reporting.run_record import Epoch, Record
from search.reporting.style import (
    ACCENT,
    HEIGHT,
    INK,
    MUTED,
    SMALL,
    WARM,
    WIDTH,
    Chart,
    add_legend,
    create_axes,
    use_integer_ticks,
    use_percent_ticks,
)


def chart_curves(record: Record) -> Iterator[Chart]:
    """Yield the learning curves of the best trial."""
    trial = record.best_trial
    if trial is not None and len(trial.curve) > 1:
        yield from _chart_curves(trial.curve, trial.best_epoch)


def chart_accuracies(record: Record) -> Iterator[Chart]:
    """Yield the accuracies of the final model."""
    best = record.summary.best
    if best is None:
        return
    folds = record.folds.get(best.name if best.trial is None else str(best.trial), ())
    external = record.summary.external
    evaluated = {
        title: (scores.accuracy, scores.accuracy_ci95)
        for title, scores in (
            ("test set", record.summary.test),
            ("external test set", external.scores if external else None),
        )
        if scores is not None
    }
    if len(folds) > 1:
        intervals = [
            f"{name}: {percent(accuracy)}, 95% CI {interval(ci95)}"
            for name, (accuracy, ci95) in evaluated.items()
        ]
        is_probe = best.trial is None
        name = "linear probe, cross-validated" if is_probe else "best validation"
        yield Chart(
            "accuracy",
            draw_accuracies(best.val_accuracy, folds, evaluated, name),
            f"{'Linear probe, cross-validated' if is_probe else 'Best validation accuracy'}"
            f" {percent(best.val_accuracy)}, {len(folds)}-fold"
            f" cross-validation, mean of the folds {percent(statistics.mean(folds))}. "
            + ". ".join(intervals),
            (
                ""
                if is_probe
                else "The best validation accuracy is optimistic: the search selected by it. "
            )
            + "Each point of the cross-validation is a fold. Bars are 95% confidence intervals.",
        )


def _chart_curves(curve: Sequence[Epoch], best_epoch: int | None) -> Iterator[Chart]:
    for quantity, train, val, caption in (
        (
            "accuracy",
            [epoch.train_accuracy for epoch in curve],
            [epoch.val_accuracy for epoch in curve],
            "Training is measured with augmentation and dropout, so it may look worse than"
            " validation.",
        ),
        (
            "loss",
            [epoch.train_loss for epoch in curve],
            [epoch.val_loss for epoch in curve],
            "A validation loss that rises while the training loss falls would be overfitting.",
        ),
    ):
        yield Chart(
            f"model_{quantity}",
            draw_curves([e.epoch for e in curve], train, val, best_epoch, quantity),
            f"Over {len(curve)} epochs, {quantity} went from {train[0]:.3g} to {train[-1]:.3g}"
            f" in training, and from {val[0]:.3g} to {val[-1]:.3g} in validation.",
            caption,
        )


def chart_reliability(record: Record) -> Iterator[Chart]:
    """Yield the reliability diagram of the test set."""
    known = [p for p in record.test if p.correct is not None]
    if known:
        confidences, correct = [p.ranked[0][1] for p in known], [bool(p.correct) for p in known]
        error = expected_calibration_error(confidences, correct)
        yield Chart(
            "reliability",
            draw_reliability(confidences, correct),
            f"Reliability diagram of the test set: the expected calibration error (ECE) is"
            f" {percent(error)}.",
            "Accuracy by predicted probability, in bins; numbers count images. A calibrated model"
            f" lies on the dashed line. ECE {percent(error)}.",
        )


def chart_ablation(record: Record) -> Iterator[Chart]:
    """Yield the learning curves of the ablation's steps."""
    if not record.ablation:
        return
    steps = {
        name: ([e.train_accuracy for e in curve], [e.val_accuracy for e in curve])
        for name, curve in record.ablation.items()
    }
    yield Chart(
        "ablation",
        draw_ablation(steps),
        "Training and validation accuracy by epoch. At the end: "
        + "; ".join(f"{n} {percent(t[-1])} and {percent(v[-1])}" for n, (t, v) in steps.items()),
        "A panel is a step. Where training lies far above validation, the network overfits.",
    )


def draw_curves(
    epochs: Sequence[int],
    train: Sequence[float],
    val: Sequence[float],
    best_epoch: int | None,
    quantity: str,
) -> Figure:
    """Draw a trial's learning curves of one quantity, in training and in validation."""
    figure, axes = create_axes(f"{quantity.capitalize()} by epoch", "epoch", quantity)
    axes.plot(epochs, train, "o-", color=MUTED, markersize=4, label="training")
    axes.plot(epochs, val, "o-", color=ACCENT, markersize=4, label="validation")
    if best_epoch is not None:
        axes.axvline(best_epoch, color=WARM, linestyle="--", label="best epoch")
    use_integer_ticks(axes)
    if quantity == "accuracy":
        use_percent_ticks(axes.yaxis)
    add_legend(figure)
    return figure


def draw_accuracies(
    val_accuracy: float,
    folds: Sequence[float],
    evaluated: Mapping[str, tuple[float, tuple[float, float]]],
    val_name: str = "best validation",
) -> Figure:
    """Draw the accuracies of the final model, with 95% confidence intervals.

    Args:
        val_accuracy: Its best validation accuracy.
        folds: The accuracy of each fold.
        evaluated: By test set, the accuracy with its 95% confidence interval.
        val_name: What `val_accuracy` is called.
    """
    rows = [val_name, f"{len(folds)}-fold CV", *evaluated]
    figure, axes = create_axes("Accuracy, 95% CI", "accuracy", "")
    axes.plot([val_accuracy], [0], "D", color=MUTED, markersize=7)
    axes.plot(folds, [1] * len(folds), "o", color=ACCENT, alpha=0.55, markersize=7)
    if folds:
        axes.plot([np.mean(folds)], [1], "|", color=INK, markersize=18, markeredgewidth=2)
    for row, (accuracy, (low, high)) in enumerate(evaluated.values(), start=2):
        axes.plot([low, high], [row, row], color=WARM, linewidth=2.5, solid_capstyle="butt")
        axes.plot([accuracy], [row], "o", color=WARM, markersize=7)
    use_percent_ticks(axes.xaxis)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure


def draw_reliability(confidences: Sequence[float], correct: Sequence[bool]) -> Figure:
    """Draw a reliability diagram: accuracy by predicted probability, in bins."""
    figure, axes = create_axes("Reliability diagram", "predicted probability", "accuracy")
    axes.plot([0, 1], [0, 1], "--", color=MUTED, label="calibrated")
    bins = reliability_bins(confidences, correct)
    x, y, sizes = ([one.confidence for one in bins], [one.accuracy for one in bins],
                   [one.n for one in bins])  # fmt: skip
    areas = [30 + 170 * size / max(sizes) for size in sizes]
    axes.scatter(x, y, s=areas, color=ACCENT, alpha=0.75)
    beside: Any = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL}
    for confidence, accuracy, size in zip(x, y, sizes, strict=True):
        axes.annotate(
            str(size), (confidence, accuracy), (0, 9 if accuracy < 0.5 else -18), **beside
        )
    use_percent_ticks(axes.xaxis)
    use_percent_ticks(axes.yaxis)
    axes.set_xlim(-0.02, 1.04)
    axes.set_ylim(-0.04, 1.06)
    return figure


def draw_ablation(steps: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw training and validation accuracy by epoch, one panel per step.

    Args:
        steps: By name, the accuracies in training and in validation, an epoch each.
    """
    figure = Figure(figsize=(2.1 * WIDTH, HEIGHT), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(steps), sharey=True, sharex=True))
    for axes, (name, (train, val)) in zip(panels, steps.items(), strict=True):
        epochs = range(1, len(train) + 1)
        axes.plot(epochs, train, "o-", color=MUTED, markersize=3, label="training")
        axes.plot(epochs, val, "o-", color=ACCENT, markersize=3, label="validation")
        axes.set_title(name.replace(" from ", " from\n"))
        axes.set_xlabel("epoch")
        use_integer_ticks(axes)
    panels[0].set_ylabel("accuracy")
    use_percent_ticks(panels[0].yaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=SMALL)
    return figure
