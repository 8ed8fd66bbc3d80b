from typing import get_args

import numpy as np
import pytest
from sklearn import metrics

from search.evaluation.intervals import wilson_interval
from search.evaluation.metrics import score_predictions, top_k_accuracy
from search.runs.summary import ClassScores
from spaces.rules import Metric

CLASSES = ("ant", "bee", "cow", "dog")


def predictions(n: int = 200, n_classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and probabilities that are more often correct than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[labels]
    odds = np.exp(logits)
    return labels, (odds / odds.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_metrics_are_scikit_learns(n_classes):
    labels, probabilities = predictions(n_classes=n_classes)
    predicted = probabilities.argmax(1)
    scores = score_predictions(labels, probabilities, CLASSES[:n_classes])
    assert 0.4 < scores.accuracy < 0.9
    macro = {"average": "macro", "zero_division": 0.0}
    assert scores.n == 200
    assert scores.accuracy == metrics.accuracy_score(labels, predicted)
    assert scores.macro_precision == pytest.approx(
        metrics.precision_score(labels, predicted, **macro)
    )
    assert scores.macro_recall == pytest.approx(metrics.recall_score(labels, predicted, **macro))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, **macro))
    assert scores.log_loss == pytest.approx(
        -np.log(probabilities[np.arange(200), labels]).mean(), rel=1e-5
    )
    multi_class = {} if n_classes == 2 else {"multi_class": "ovr"}
    of_auc = probabilities[:, 1] if n_classes == 2 else probabilities
    assert scores.roc_auc == pytest.approx(
        metrics.roc_auc_score(labels, of_auc, **multi_class), abs=1e-3
    )
    for metric in get_args(Metric):
        value, (low, high) = scores.of_metric(metric)
        assert low < value < high
    assert scores.of_metric("balanced_accuracy")[0] == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )
    assert scores.confusion == metrics.confusion_matrix(labels, predicted).tolist()


def test_metrics_by_hand():
    """ant: 2 of 3 correct; bee: 1 of 1, but one ant is predicted a bee; no cow; dog: none."""
    labels = np.array([0, 0, 0, 1, 3])
    probabilities = np.array(
        [
            [0.7, 0.1, 0.1, 0.1],
            [0.4, 0.3, 0.2, 0.1],
            [0.3, 0.5, 0.1, 0.1],
            [0.1, 0.6, 0.2, 0.1],
            [0.4, 0.3, 0.2, 0.1],
        ]
    )
    scores = score_predictions(labels, probabilities, CLASSES)
    assert scores.accuracy == 0.6
    assert scores.accuracy_ci95 == wilson_interval(3, 5)
    assert scores.top3_accuracy_ci95 == wilson_interval(4, 5)
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        low, high = getattr(scores, f"{name}_ci95")
        assert 0 < low < getattr(scores, name) < high < 1
    assert scores.confusion == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    # Means are over ant, bee and dog: there is no cow to predict.
    assert scores.macro_precision == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.macro_recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores.top3_accuracy == 0.8
    assert scores.log_loss == pytest.approx(-np.log([0.7, 0.4, 0.3, 0.6, 0.1]).mean())
    ant, bee, cow, dog = scores.per_class
    assert ant == ClassScores(
        name="ant",
        precision=pytest.approx(2 / 3),
        recall=pytest.approx(2 / 3),
        recall_ci95=wilson_interval(2, 3),
        f1=pytest.approx(2 / 3),
        n=3,
    )
    assert (bee.precision, bee.recall, bee.n) == (0.5, 1.0, 1)
    assert (cow.n, cow.recall_ci95) == (0, (0.0, 1.0))
    assert (dog.recall, dog.recall_ci95) == (0.0, wilson_interval(0, 1))


def test_a_class_without_images_does_not_lower_the_means():
    labels, probabilities = np.array([0, 1]), np.eye(4)[[0, 1]]
    scores = score_predictions(labels, probabilities, CLASSES)
    assert scores.macro_f1 == scores.macro_recall == scores.macro_precision == 1.0


def test_a_certain_mistake_has_a_finite_log_loss():
    scores = score_predictions(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), CLASSES[:2])
    assert 10 < scores.log_loss < 40
    assert np.isfinite(scores.log_loss)


def test_one_image():
    scores = score_predictions(np.array([2]), np.array([[0.1, 0.2, 0.3, 0.4]]), CLASSES)
    assert (scores.n, scores.accuracy, scores.top3_accuracy) == (1, 0.0, 1.0)


def test_top_3_accuracy():
    labels, probabilities = predictions()
    expected = metrics.top_k_accuracy_score(labels, probabilities, k=3)
    assert top_k_accuracy(labels, probabilities) == pytest.approx(expected)
    assert 0.5 < expected < 1
    assert top_k_accuracy(*predictions(n_classes=2)) == 1.0
    # Not all classes need to occur among the labels.
    assert top_k_accuracy(np.array([0, 0]), np.array([[4, 3, 2, 1], [1, 2, 3, 4]]) / 10) == 0.5
