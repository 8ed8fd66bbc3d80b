"""Show how accurate a model is where it answers only if it is confident (Geifman & El-Yaniv 2017).

The other images are left to a person, which `search.predict --threshold` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from search.console.formatting import count, interval, percent
from search.evaluation.intervals import wilson_interval
from search.evaluation.predictions import PredictedImage
from search.reporting.run_record import Record
from search.reporting.style import (
    ACCENT,
    SMALL,
    WARM,
    Chart,
    create_axes,
    use_percent_ticks,
)

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""They are fixed: one that was chosen by the test set would look better than it is."""

SHOWN_THRESHOLD = 0.9
"""The one that the report's sentence is about."""


@dataclass(frozen=True)
class Coverage:
    """What a model answers above a threshold.

    Attributes:
        threshold: The lowest predicted probability that is an answer.
        n: Images that are answered.
        fraction: Their fraction of all.
        accuracy: The accuracy on them; None where there are none.
        ci95: Its 95% confidence interval (Wilson); None likewise.
    """

    threshold: float
    n: int
    fraction: float
    accuracy: float | None
    ci95: tuple[float, float] | None


def coverage_at(
    threshold: float, confidences: Sequence[float], correct: Sequence[bool]
) -> Coverage:
    """Return what is answered at a threshold, as `search.predict --threshold` decides it.

    Args:
        threshold: In [0, 1].
        confidences: The highest probability of each image, at least one.
        correct: Whether each prediction is correct.
    """
    answered = [right for p, right in zip(confidences, correct, strict=True) if p >= threshold]
    n, n_right = len(answered), sum(answered)
    return Coverage(
        threshold,
        n,
        n / len(confidences),
        n_right / n if n else None,
        wilson_interval(n_right, n) if n else None,
    )


def coverages(predictions: Sequence[PredictedImage]) -> list[Coverage]:
    """Return what is answered at each of `THRESHOLDS`; nothing without labelled images."""
    confidences, correct = _known(predictions)
    return [coverage_at(one, confidences, correct) for one in THRESHOLDS] if confidences else []


def describe_coverage(predictions: Sequence[PredictedImage]) -> str:
    """Describe the answers above 0.90: "answer only above 0.90: 93.0% of images, 99.6% right"."""
    confidences, correct = _known(predictions)
    if not confidences:
        return ""
    found = coverage_at(SHOWN_THRESHOLD, confidences, correct)
    begin = f"answer only above {SHOWN_THRESHOLD:.2f}: {percent(found.fraction)} of images"
    if found.accuracy is None or found.ci95 is None:
        return f"{begin}, so nothing is left to be right or wrong"
    return (
        f"{begin} ({count(found.n, 'image')}), {percent(found.accuracy)} of them right, 95% CI"
        f" {interval(found.ci95)}"
    )


def chart_coverage(record: Record) -> Iterator[Chart]:
    """Yield accuracy against coverage on the test set."""
    confidences, correct = _known(record.test)
    if len(confidences) < 2:
        return
    text = describe_coverage(record.test)
    yield Chart(
        "coverage",
        draw_coverage(confidences, correct),
        f"Accuracy against coverage on the test set: {text}.",
        "Accuracy on the images that the model is most confident of, by how many they are; the"
        " others are left to a person. Points are the thresholds of the table.",
    )


def draw_coverage(confidences: Sequence[float], correct: Sequence[bool]) -> Figure:
    """Draw the accuracy on the most confident images by their fraction of all."""
    figure, axes = create_axes("Accuracy against coverage", "images answered", "accuracy")
    order = np.argsort(-np.asarray(confidences), kind="stable")
    right = np.asarray(correct, float)[order]
    n = np.arange(1, len(right) + 1)
    axes.plot(n / len(n), np.cumsum(right) / n, color=ACCENT)
    for threshold in THRESHOLDS:
        found = coverage_at(threshold, confidences, correct)
        if found.accuracy is not None:
            axes.plot([found.fraction], [found.accuracy], "o", color=WARM, markersize=5)
            axes.annotate(
                f"{threshold:g}",
                (found.fraction, found.accuracy),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
            )
    use_percent_ticks(axes.xaxis)
    use_percent_ticks(axes.yaxis)
    axes.set_xlim(-0.02, 1.05)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 1.02) if high > 0.95 else high)
    return figure


def _known(predictions: Sequence[PredictedImage]) -> tuple[list[float], list[bool]]:
    """Return confidence and correctness of the labelled images."""
    known = [one for one in predictions if one.correct is not None]
    return [one.ranked[0][1] for one in known], [bool(one.correct) for one in known]
