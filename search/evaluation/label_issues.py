"""Labels that look wrong, by out-of-fold probabilities.

An image's label is doubted where a model that never saw the image holds another class for much
more likely. The labels are left as they are: the list is for a person to look through.

Measured with flipped labels (`benchmarks.models`), a plain bound on cleanlab's quality score
finds more of them, and with fewer false alarms, than its own rules for how many to flag: those
reckon with probabilities of any kind, and ours are calibrated, on the same labels, wrong ones too.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_LABEL_QUALITY = 0.3
"""A label of at most this quality is doubted: another class is at least 0.4 more likely."""

MAX_ISSUES = 60
"""Doubtful labels that are shown with their images, the worst first."""

_MAX_PAIRS = 8


@dataclass(frozen=True)
class LabelIssue:
    """One label that looks wrong.

    Attributes:
        image: The image's name.
        given: Its label.
        suggested: The class that the model takes it for.
        confidence: The model's probability of that class.
    """

    image: str
    given: str
    suggested: str
    confidence: float


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the indices of images whose label looks wrong, the worst first.

    Args:
        labels: int64 [n], each in [0, classes).
        probabilities: [n, classes], calibrated, of models that never saw the image; rows sum
            to 1.

    Returns:
        int64 [m], by ascending quality.
    """
    from cleanlab.rank import get_label_quality_scores  # takes a second, and is needed once

    # (1 + probability of the label - probability of the likeliest other class) / 2
    quality = get_label_quality_scores(
        labels, np.asarray(probabilities, np.float64), method="normalized_margin"
    )
    order = np.argsort(quality, kind="stable")
    return np.asarray(order[quality[order] <= MAX_LABEL_QUALITY])


def list_issues(
    names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> list[LabelIssue]:
    """Return the labels that look wrong, the worst first.

    Args:
        names: Of the images.
        labels: int64 [n].
        probabilities: Out-of-fold, [n, classes].
        classes: Their names.
    """
    return [
        LabelIssue(
            names[i],
            classes[labels[i]],
            classes[probabilities[i].argmax()],
            float(probabilities[i].max()),
        )
        for i in find_label_issues(labels, probabilities)
    ]


def read_issues(path: Path) -> tuple[LabelIssue, ...]:
    """Read what `write_issues` wrote; nothing where there is no file."""
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return tuple(
            LabelIssue(row["image"], row["given"], row["suggested"], float(row["confidence"]))
            for row in csv.DictReader(file)
        )


def write_issues(path: Path, issues: Sequence[LabelIssue]) -> None:
    """Write one line a doubtful label."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "given", "suggested", "confidence"])
        writer.writerows(
            [issue.image, issue.given, issue.suggested, f"{issue.confidence:.6f}"]
            for issue in issues
        )


def summarise(issues: Sequence[LabelIssue], n: int) -> dict[str, Any]:
    """Count the doubtful labels of n images: all, and the most frequent pairs of classes."""
    pairs = Counter((issue.given, issue.suggested) for issue in issues)
    return {
        "n": len(issues),
        "share": len(issues) / n,
        "pairs": [
            {"given": given, "suggested": suggested, "n": times}
            for (given, suggested), times in pairs.most_common(_MAX_PAIRS)
        ],
    }
