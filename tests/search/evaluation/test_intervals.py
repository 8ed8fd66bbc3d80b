import time

import numpy as np
import pytest
from scipy.stats import sem
from sklearn.metrics import precision_recall_fscore_support

from search.evaluation.intervals import (
    macro_intervals,
    macro_scores,
    mean_with_error,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("n_correct", "n", "low", "high"),
    [  # R: binom::binom.wilson(x, n); Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (1, 1, 0.2065, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(n_correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(n_correct, n) == pytest.approx((low, high), abs=5e-5)


def test_the_error_of_a_mean_counts_near_duplicates_once() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = mean_with_error(values)
    assert once == pytest.approx((values.mean(), sem(values)))
    copies, groups = np.repeat(values, 4), np.repeat(np.arange(50), 4)
    assert mean_with_error(copies, groups) == pytest.approx(once)
    assert mean_with_error(copies)[1] < once[1] / 1.9
    assert mean_with_error(values, np.zeros(50))[1] == np.inf


def test_macro_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (labels, predicted), 1)
    scores = macro_scores(confusion)
    expected = precision_recall_fscore_support(labels, predicted, average="macro")
    for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
        assert scores[f"macro_{name}"] == pytest.approx(value)


def test_a_class_without_images_is_ignored() -> None:
    scores = macro_scores(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    assert scores["macro_recall"] == pytest.approx((0.75 + 1) / 2)
    low, high = macro_intervals([[3, 0, 1], [0, 4, 0], [0, 0, 0]])["macro_recall"]
    assert 0.4 < low < 0.875 < high < 1


def test_perfect_accuracy_gives_no_certainty() -> None:
    intervals = macro_intervals((np.eye(3, dtype=int) * 40).tolist())
    for low, high in intervals.values():
        assert 0.94 < low < 0.995
        assert high == 1.0


def test_with_many_images_it_is_the_normal_interval() -> None:
    low, high = macro_intervals([[1800, 200], [200, 1800]])["macro_recall"]
    sd = np.sqrt(0.9 * 0.1 / 2000 / 2)  # of the mean of two classes of 2000 images each
    assert (low + high) / 2 == pytest.approx(0.9, abs=0.002)
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.07)


def test_more_images_narrow_the_interval() -> None:
    few = np.array([[18, 2], [3, 17]])
    widths = [
        float(np.subtract(*macro_intervals((few * k).tolist())["macro_f1"])) for k in (1, 4, 16)
    ]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("counts", "accuracy"), [((10, 20, 87, 48, 23, 10), 0.97), ((3, 6, 4, 10, 10), 0.9)]
)
def test_intervals_of_macro_f1_cover_the_truth(counts: tuple[int, ...], accuracy: float) -> None:
    """In 95 of 100 experiments; benchmarks/models/intervals.py has the whole table."""
    rng = np.random.default_rng(0)
    sizes, covered = np.array(counts), []
    for _ in range(200):
        truth = np.eye(len(sizes)) * accuracy + (1 - accuracy) / len(sizes)
        truth /= truth.sum(1, keepdims=True)
        target = macro_scores(truth * sizes[:, None])["macro_f1"]
        drawn = [rng.multinomial(n, row) for n, row in zip(sizes, truth, strict=True)]
        low, high = macro_intervals(np.array(drawn).tolist())["macro_f1"]
        covered.append(low <= target <= high)
    assert 0.91 <= np.mean(covered) <= 0.985


def test_many_classes_cost_little_time():
    """Drawing every cell of 600 x 600 took 36 s."""
    rng = np.random.default_rng(0)
    labels = rng.integers(600, size=6000)
    predicted = np.where(rng.random(6000) < 0.9, labels, rng.integers(600, size=6000))
    confusion = np.zeros((600, 600), int)
    np.add.at(confusion, (labels, predicted), 1)
    started = time.process_time()
    low, high = macro_intervals(confusion.tolist())["macro_recall"]
    assert time.process_time() - started < 5
    assert low < np.diagonal(confusion).sum() / 6000 < high
