"""The metrics by which models are compared; see `Space.metric`.

Whatever the metric, a score is higher where a model is better: the log loss counts negatively, as
scikit-learn's `neg_log_loss` does. `metric_value` takes the sign off again, for people. Nothing
else knows which metric is minimised.

In NumPy, because importing scikit-learn would take a second of each worker's start.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spaces.rules import Metric

_CHANCE = 0.5
"""The area under the ROC curve where no class has one."""


def compute_score(metric: Metric, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return a model's score on images; a higher one is better.

    accuracy: the fraction of images whose class is predicted.
    balanced_accuracy: the mean recall of the classes that occur among the labels.
    macro_f1: the mean F1 of these classes.
    log_loss: minus the mean cross-entropy in nats.
    roc_auc: the mean, over the classes, of the area under the ROC curve of one class against all
        others, by its predicted probability. A class that no image has, or every image, has no
        curve and does not count; without any curve the score is 0.5. Two classes have the same
        curve.

    Args:
        metric: Which score.
        logits: [n, classes]; the logarithms of probabilities will do.
        labels: int64 [n].

    Returns:
        The score; NaN for no image.
    """
    if not len(labels):
        return float("nan")
    return float(resample_scores(metric, logits, labels, np.ones((1, len(labels))))[0])


def resample_scores(
    metric: Metric, logits: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return the scores on samples of the same images; see `compute_score`.

    Args:
        metric: Which score.
        logits: [n, classes], n >= 1.
        labels: int64 [n].
        counts: float64 [samples, n], how often a sample has each image; none is empty.

    Returns:
        float64 [samples].
    """
    return _SCORES[metric](logits.astype(np.float64), labels, counts)


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur among the labels, int64 [n] each."""
    return float(_macro_f1(labels, predicted, np.ones((1, len(labels))))[0])


def metric_value(metric: Metric, score: float) -> float:
    """Return the metric as people read it: the log loss without its sign. It undoes itself, too."""
    return -score if metric == "log_loss" else score


def score_bounds(metric: Metric) -> tuple[float, float]:
    """Return the lowest and the highest score that there can be."""
    return (-np.inf, 0.0) if metric == "log_loss" else (0.0, 1.0)


def _accuracy(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts @ (logits.argmax(1) == labels) / counts.sum(1))


def _balanced_accuracy(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    actual, _, hits = _count_by_class(labels, logits.argmax(1), counts)
    return _mean_of(hits / np.maximum(actual, 1), actual > 0)


def _macro_f1_of_logits(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _macro_f1(labels, logits.argmax(1), counts)


def _macro_f1(labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray) -> np.ndarray:
    actual, found, hits = _count_by_class(labels, predicted, counts)
    return _mean_of(2 * hits / np.maximum(actual + found, 1), actual > 0)


def _negative_log_loss(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return np.asarray(-(counts @ losses) / counts.sum(1))


def _roc_auc(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    areas, exist = np.zeros((2, len(counts), len(np.unique(labels))))
    for place, label in enumerate(np.unique(labels)):
        areas[:, place], exist[:, place] = _area(probabilities[:, label], labels == label, counts)
    means = _mean_of(areas, exist > 0)
    return np.where(exist.any(1), means, _CHANCE)


def _area(
    values: np.ndarray, is_positive: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the area under one ROC curve, and whether there is a curve: float64 [samples] each.

    It is the probability that an image of the class has a higher value than one of the others
    (Mann and Whitney 1947); of equal values, half counts.
    """
    order = np.argsort(values)
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # of runs of equal values
    ordered = counts[:, order]
    positives = np.add.reduceat(ordered * is_positive[order], starts, axis=1)
    negatives = np.add.reduceat(ordered * ~is_positive[order], starts, axis=1)
    below = negatives.cumsum(1) - negatives / 2
    n_pairs = positives.sum(1) * negatives.sum(1)
    return (positives * below).sum(1) / np.maximum(n_pairs, 1), n_pairs > 0


def _count_by_class(
    labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the images of each class, those predicted as it, and the hits: [samples, classes]."""
    n_classes = 1 + max(int(labels.max()), int(predicted.max()))
    is_hit = labels == predicted

    def count(classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.array([np.bincount(classes, row, n_classes) for row in weights])

    return count(labels, counts), count(predicted, counts), count(labels, counts * is_hit)


def _mean_of(values: np.ndarray, counting: np.ndarray) -> np.ndarray:
    """Return the means over classes, of those that count: [samples]."""
    return np.asarray(np.where(counting, values, 0).sum(1) / np.maximum(counting.sum(1), 1))


_SCORES: dict[Metric, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1_of_logits,
    "log_loss": _negative_log_loss,
    "roc_auc": _roc_auc,
}
