"""Which figures tell how good a model is, each with what it shows in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from search.console.formatting import interval, percent
from search.evaluation.calibration import expected_calibration_error
from search.reporting.model_figures import (
    draw_ablation,
    draw_accuracies,
    draw_confusion,
    draw_curves,
    draw_reliability,
)
from search.reporting.run_record import Record
from search.reporting.style import Drawn

_MAX_CLASSES = 40  # of a confusion matrix that can still be read


def chart_winner(record: Record) -> Iterator[Drawn]:
    """Yield the curves of the winner, or of the best so far, and what is known of its accuracy."""
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
                "Training images are augmented and dropout is on, so training may look worse"
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
            ("held-out images", record.summary.get("test")),
            ("images from elsewhere", record.summary.get("external")),
        )
        if part and part.get("accuracy") is not None
    }
    if len(folds) > 1:
        words = [
            f"{t}: {percent(a)}, 95 % interval {interval(ci)}" for t, (a, ci) in judged.items()
        ]
        yield (
            "agreement",
            draw_accuracies(best["val_accuracy"], folds, judged),
            f"The search said {percent(best['val_accuracy'])}, the folds say"
            f" {percent(statistics.mean(folds))} on average. " + ". ".join(words),
            "The search chose by its number, so that one flatters. No fold is judged on images it"
            " was trained on. Bars are 95 % intervals.",
        )


def most_confused(confusion: Sequence[Sequence[int]], most: int) -> list[int]:
    """Return the classes with the most confusions, as row or as column, in their own order."""
    counts = np.array(confusion)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")
    return sorted(order[:most].tolist())


def chart_evaluation(record: Record) -> Iterator[Drawn]:
    """Yield the confusions, and whether the probabilities can be believed."""
    for part, what in (("test", "held-out images"), ("external", "images from elsewhere")):
        scores: Mapping[str, Any] = record.summary.get(part) or {}
        if "confusion" not in scores:
            continue
        classes = [row["class"] for row in scores["per_class"]]
        shown = most_confused(scores["confusion"], _MAX_CLASSES)
        some = len(shown) < len(classes)
        title = f"Confusions of the {len(shown)} most confused classes" if some else "Confusions"
        left_out = (
            f" {len(classes) - len(shown)} classes with fewer confusions are left out."
            if some
            else ""
        )
        yield (
            f"confusion_{part}",
            draw_confusion(
                [[scores["confusion"][i][j] for j in shown] for i in shown],
                [classes[i] for i in shown],
                f"{title}, {what}",
            ),
            f"Confusion matrix of {what}: {percent(scores['accuracy'])} of all are right, and lie"
            f" on the diagonal.{left_out}",
            "A row is a true class, a column what the model said. Blue is right, red is wrong; the"
            f" deeper, the larger the share of the row.{left_out}",
        )
    known = [p for p in record.test if p.correct is not None]
    if known:
        sure, right = [p.ranked[0][1] for p in known], [bool(p.correct) for p in known]
        error = expected_calibration_error(sure, right)
        yield (
            "reliability",
            draw_reliability(sure, right),
            f"Reliability diagram of the held-out images: the expected calibration error is"
            f" {percent(error)}.",
            "On the dashed line, images that the model is 80 % sure of are right 80 times in 100."
            f" It is {percent(error)} off on average. Numbers count images.",
        )


def chart_ablation(record: Record) -> Iterator[Drawn]:
    """Yield the ladder's curves."""
    if not record.ablation:
        return
    rungs = {
        name: ([e.train_accuracy for e in curve], [e.val_accuracy for e in curve])
        for name, curve in record.ablation.items()
    }
    yield (
        "ablation",
        draw_ablation(rungs),
        "Training and validation accuracy by epoch. At the end: "
        + "; ".join(f"{n} {percent(t[-1])} and {percent(v[-1])}" for n, (t, v) in rungs.items()),
        "A panel is a rung. Where the grey line leaves the blue one below, the network learns its"
        " training images by heart.",
    )
