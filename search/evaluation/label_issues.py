"""Find possible label errors from out-of-fold probabilities.

A label is listed where a model that was not trained on the image finds another class much more
probable. The measure is cleanlab's label quality by normalized margin, with a plain bound on it.
With flipped labels (`benchmarks.models.label_issues`) the bound finds more of them than cleanlab's
own rules for how many labels to list, and with fewer false alarms: those rules are made for
probabilities of any kind, and ours are calibrated, on the same labels, wrong ones too. One formula
is no reason for a dependency, so cleanlab is used by the benchmark alone.

Labels are not changed: the list is for a person to look through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from search.runs.summary import LabelIssueCounts, LabelPair
from search.runs.tables import LABEL_ISSUE_COLUMNS, read_records, write_csv

MAX_LABEL_QUALITY = 0.3
"""A label of at most this quality is listed: another class is at least 0.4 more probable."""

MAX_ISSUES = 60
"""Possible label errors that are shown with their images, the lowest quality first."""

_MAX_PAIRS = 8


@dataclass(frozen=True)
class LabelIssue:
    """One possible label error.

    Attributes:
        image: The image's name.
        given_label: Its label.
        predicted_label: The class that the model predicts.
        label_quality: In [0, `MAX_LABEL_QUALITY`]: see `label_quality`.
    """

    image: str
    given_label: str
    predicted_label: str
    label_quality: float


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each label's quality by normalized margin (Northcutt et al., arXiv 1911.00068).

    It is (1 + probability of the label - highest probability of another class) / 2.

    Args:
        labels: int64 [n], each in [0, classes).
        probabilities: [n, classes], rows sum to 1.

    Returns:
        float64 [n] in [0, 1].
    """
    of_others = np.array(probabilities, np.float64)
    rows = np.arange(len(labels))
    of_label = of_others[rows, labels]
    of_others[rows, labels] = -np.inf
    return np.asarray((1 + of_label - of_others.max(axis=1)) / 2)


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the indices of possible label errors, int64 [m], the lowest quality first.

    Args:
        labels: int64 [n], each in [0, classes).
        probabilities: [n, classes], calibrated, of models that were not trained on the image.
    """
    quality = label_quality(labels, probabilities)
    order = np.argsort(quality, kind="stable")
    return np.asarray(order[quality[order] <= MAX_LABEL_QUALITY])


def list_issues(
    names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> list[LabelIssue]:
    """Return the possible label errors, the lowest quality first.

    Args:
        names: Names of the images.
        labels: int64 [n].
        probabilities: Out-of-fold, [n, classes].
        classes: Their names.
    """
    quality = label_quality(labels, probabilities)
    return [
        LabelIssue(
            names[i],
            classes[labels[i]],
            classes[probabilities[i].argmax()],
            round(float(quality[i]), 6),
        )
        for i in find_label_issues(labels, probabilities)
    ]


def read_issues(path: Path) -> tuple[LabelIssue, ...]:
    """Read a table of possible label errors; nothing where there is none.

    Raises:
        FolderError: it is damaged.
    """
    return tuple(read_records(path, _read_issue, errors="replace"))


def _read_issue(row: dict[str, str]) -> LabelIssue:
    return LabelIssue(
        row["image"], row["given_label"], row["predicted_label"], float(row["label_quality"])
    )


def write_issues(path: Path, issues: Sequence[LabelIssue]) -> None:
    """Write a table with one line per possible label error."""
    write_csv(path, LABEL_ISSUE_COLUMNS, map(astuple, issues))


def count_issues(issues: Sequence[LabelIssue], n: int) -> LabelIssueCounts:
    """Count the possible label errors of n images: all, and the most frequent pairs of classes."""
    pairs = Counter((issue.given_label, issue.predicted_label) for issue in issues)
    return LabelIssueCounts(
        n=len(issues),
        fraction=len(issues) / n,
        pairs=[
            LabelPair(given_label=given, predicted_label=predicted, n=times)
            for (given, predicted), times in pairs.most_common(_MAX_PAIRS)
        ],
    )
