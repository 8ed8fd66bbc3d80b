import csv
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from search.evaluation.label_issues import (
    LabelIssue,
    find_label_issues,
    list_issues,
    summarise,
    write_issues,
)

CLASSES = ("ant", "bee", "cow")


def flipped(n: int = 300, n_wrong: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels of which the first few are wrong, a good model's probabilities, the truth."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    probabilities = softmax(rng.normal(size=(n, 3)) + 7 * np.eye(3)[truth], axis=1)
    labels = truth.copy()
    labels[:n_wrong] = (truth[:n_wrong] + 1) % 3
    return labels, probabilities, truth


def test_wrong_labels_are_found() -> None:
    labels, probabilities, _ = flipped()
    found = find_label_issues(labels, probabilities)
    assert len(np.intersect1d(found, np.arange(15))) >= 14
    assert len(np.setdiff1d(found, np.arange(15))) <= 1
    margin = probabilities[found].max(1) - probabilities[found, labels[found]]
    assert (np.diff(margin) <= 0).all(), "the worst come first"


def test_labels_that_are_right_are_left_alone() -> None:
    _, probabilities, truth = flipped()
    assert len(find_label_issues(truth, probabilities)) <= 1


def test_another_class_must_be_much_more_likely() -> None:
    labels = np.zeros(4, np.int64)
    likely = np.array([0.65, 0.75, 0.4, 0.9])  # of another class
    probabilities = np.stack([1 - likely, likely, np.zeros(4)], axis=1)
    assert find_label_issues(labels, probabilities).tolist() == [3, 1]


def test_small_classes_and_a_single_one_are_no_failure() -> None:
    tiny = np.array([0, 0, 0, 0, 1, 1])
    assert find_label_issues(tiny, np.eye(3)[tiny] * 0.9 + 1 / 30).tolist() == []
    alone = np.zeros(5, np.int64)
    assert find_label_issues(alone, np.full((5, 3), 1 / 3)).tolist() == []


def test_the_list_names_what_is_given_and_what_is_suggested(tmp_path: Path) -> None:
    labels, probabilities, truth = flipped()
    names = [f"{i}.jpg" for i in range(300)]
    names[0] = os.fsdecode(b"caf\xe9, 1.jpg")
    issues = list_issues(names, labels, probabilities, CLASSES)
    by_name = {issue.image: issue for issue in issues}
    first = by_name[names[0]]
    assert (first.given, first.suggested) == (CLASSES[labels[0]], CLASSES[truth[0]])
    assert first.confidence == pytest.approx(probabilities[0].max())
    write_issues(tmp_path / "issues.csv", issues)
    with (tmp_path / "issues.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [issue.image for issue in issues]
    assert list(rows[0]) == ["image", "given", "suggested", "confidence"]


def test_the_summary_counts_pairs() -> None:
    issues = [LabelIssue(str(i), "ant", "bee", 0.9) for i in range(3)]
    issues.append(LabelIssue("x", "cow", "ant", 0.8))
    assert summarise(issues, 80) == {
        "n": 4,
        "share": 0.05,
        "pairs": [
            {"given": "ant", "suggested": "bee", "n": 3},
            {"given": "cow", "suggested": "ant", "n": 1},
        ],
    }
