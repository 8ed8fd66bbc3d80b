import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from spaces.rules import Metric
from trainables.metrics import compute_score, macro_f1, metric_value, resample_scores

METRICS: tuple[Metric, ...] = (
    *("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc"),
)


def imbalanced(n_classes: int, n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right often, and labels of which the first class has most."""
    rng = np.random.default_rng(n_classes)
    chances = 1 / np.arange(1, n_classes + 1) ** 2
    labels = rng.choice(n_classes, n, p=chances / chances.sum())
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    return np.round(8 * logits) / 8, labels  # so that some are equal


def of_sklearn(metric: Metric, logits: np.ndarray, labels: np.ndarray) -> float:
    probabilities, predicted = softmax(logits, axis=1), logits.argmax(1)
    match metric:
        case "accuracy":
            return float(metrics.accuracy_score(labels, predicted))
        case "balanced_accuracy":
            return float(metrics.balanced_accuracy_score(labels, predicted))
        case "macro_f1":
            return float(metrics.f1_score(labels, predicted, average="macro"))
        case "log_loss":
            return -float(metrics.log_loss(labels, probabilities))
    if probabilities.shape[1] == 2:
        return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    return float(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_sklearn(metric: Metric, n_classes: int) -> None:
    logits, labels = imbalanced(n_classes)
    expected = of_sklearn(metric, logits, labels)
    assert compute_score(metric, logits, labels) == pytest.approx(expected, abs=1e-12)
    as_trained = compute_score(metric, logits.astype(np.float32), labels)
    assert as_trained == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_sample_scores_as_the_images_that_it_has(metric: Metric) -> None:
    logits, labels = imbalanced(4)
    counts = np.random.default_rng(0).multinomial(len(labels), [1 / len(labels)] * len(labels), 3)
    counts[2] *= labels != 3  # without one class
    samples = [np.repeat(np.arange(len(labels)), row) for row in counts]
    expected = [compute_score(metric, logits[rows], labels[rows]) for rows in samples]
    assert len(set(expected)) == 3
    np.testing.assert_allclose(resample_scores(metric, logits, labels, counts), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_better_predictions_have_the_higher_score(metric: Metric) -> None:
    logits, labels = imbalanced(3)
    better = logits + np.eye(3)[labels]
    assert compute_score(metric, better, labels) > compute_score(metric, logits, labels)


def test_macro_means_are_over_the_classes_that_have_labels() -> None:
    logits = np.log([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.1, 0.7], [0.7, 0.2, 0.1]])
    labels = np.array([0, 0, 0, 1])  # no image of the class 2, which is predicted once
    assert compute_score("balanced_accuracy", logits, labels) == pytest.approx((2 / 3 + 0) / 2)
    assert compute_score("macro_f1", logits, labels) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(labels, logits.argmax(1)) == compute_score("macro_f1", logits, labels)
    of_first = metrics.roc_auc_score(labels == 0, np.exp(logits)[:, 0])
    of_second = metrics.roc_auc_score(labels == 1, np.exp(logits)[:, 1])
    assert compute_score("roc_auc", logits, labels) == pytest.approx((of_first + of_second) / 2)


def test_without_a_roc_curve_the_area_is_that_of_chance() -> None:
    assert compute_score("roc_auc", np.eye(3), np.array([1, 1, 1])) == 0.5
    assert compute_score("roc_auc", np.zeros((4, 2)), np.array([0, 1, 0, 1])) == 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_no_image_has_no_score(metric: Metric) -> None:
    assert math.isnan(compute_score(metric, np.empty((0, 3)), np.empty(0, np.int64)))


def test_the_log_loss_is_the_one_metric_with_a_sign() -> None:
    assert metric_value("log_loss", -0.5) == 0.5
    assert all(metric_value(metric, 0.5) == 0.5 for metric in METRICS if metric != "log_loss")
