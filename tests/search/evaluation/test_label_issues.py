import os
from pathlib import Path

import numpy as np
import pytest
from cleanlab.rank import get_label_quality_scores
from scipy.special import softmax

from search.evaluation.label_issues import (
    LabelIssue,
    count_issues,
    find_label_issues,
    label_quality,
    list_issues,
    read_issues,
    write_issues,
)
from search.runs.summary import LabelIssueCounts, LabelPair
from search.runs.tables import read_csv

CLASSES = ("ant", "bee", "cow")


def flipped(n: int = 300, n_wrong: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels of which the first few are wrong, a good model's probabilities, the truth."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    probabilities = softmax(rng.normal(size=(n, 3)) + 7 * np.eye(3)[truth], axis=1)
    labels = truth.copy()
    labels[:n_wrong] = (truth[:n_wrong] + 1) % 3
    return labels, probabilities, truth


def test_label_quality_is_cleanlabs_normalized_margin() -> None:
    labels, probabilities, _ = flipped()
    expected = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    np.testing.assert_allclose(label_quality(labels, probabilities), expected, atol=1e-12)


def test_wrong_labels_are_found() -> None:
    labels, probabilities, _ = flipped()
    found = find_label_issues(labels, probabilities)
    assert len(np.intersect1d(found, np.arange(15))) >= 14
    assert len(np.setdiff1d(found, np.arange(15))) <= 1
    margin = probabilities[found].max(1) - probabilities[found, labels[found]]
    assert (np.diff(margin) <= 0).all(), "the lowest quality comes first"


def test_correct_labels_are_not_found() -> None:
    _, probabilities, truth = flipped()
    assert len(find_label_issues(truth, probabilities)) <= 1


def test_another_class_must_be_much_more_probable() -> None:
    labels = np.zeros(4, np.int64)
    of_other = np.array([0.65, 0.75, 0.4, 0.9])
    probabilities = np.stack([1 - of_other, of_other, np.zeros(4)], axis=1)
    assert find_label_issues(labels, probabilities).tolist() == [3, 1]


def test_small_classes_and_a_single_one() -> None:
    tiny = np.array([0, 0, 0, 0, 1, 1])
    assert find_label_issues(tiny, np.eye(3)[tiny] * 0.9 + 1 / 30).tolist() == []
    alone = np.zeros(5, np.int64)
    assert find_label_issues(alone, np.full((5, 3), 1 / 3)).tolist() == []


def test_issues_are_listed_written_and_read(tmp_path: Path) -> None:
    labels, probabilities, truth = flipped()
    names = [f"{i}.jpg" for i in range(300)]
    names[0] = os.fsdecode(b"caf\xe9, 1.jpg")
    issues = list_issues(names, labels, probabilities, CLASSES)
    first = next(issue for issue in issues if issue.image == names[0])
    assert (first.given_label, first.predicted_label) == (CLASSES[labels[0]], CLASSES[truth[0]])
    assert first.label_quality == pytest.approx(label_quality(labels, probabilities)[0], abs=1e-6)
    path = tmp_path / "label_issues.csv"
    write_issues(path, issues)
    table = read_csv(path)
    assert list(table) == ["image", "given_label", "predicted_label", "label_quality"]
    assert table["image"].tolist() == [issue.image for issue in issues]
    shown = [issue.image.replace("\udce9", "\ufffd") for issue in issues]
    assert [issue.image for issue in read_issues(path)] == shown
    assert read_issues(path)[1:] == tuple(issues[1:])
    assert read_issues(tmp_path / "none.csv") == ()


def test_issues_and_pairs_are_counted() -> None:
    issues = [LabelIssue(str(i), "ant", "bee", 0.1) for i in range(3)]
    issues.append(LabelIssue("x", "cow", "ant", 0.2))
    assert count_issues(issues, 80) == LabelIssueCounts(
        n=4,
        fraction=0.05,
        pairs=[
            LabelPair(given_label="ant", predicted_label="bee", n=3),
            LabelPair(given_label="cow", predicted_label="ant", n=1),
        ],
    )
