"""Calibration: temperature scaling, expected calibration error, reliability diagrams.

One temperature divides all logits before the softmax (Guo et al., arXiv 1706.04599). It is fitted
on out-of-fold logits: each image's come from the one member that never saw it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from search.runs.summary import CalibrationChange, CalibrationScores, ReliabilityBin

N_BINS = 10  # of confidence
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of least log loss (see `log_losses`).

    Args:
        logits: [n, classes], n >= 1, of models that never saw the image.
        labels: int64 [n].

    Returns:
        A temperature in [0.05, 20]; above 1 where the model was overconfident.
    """
    doubles = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(log_losses(doubles, labels, np.exp(log_temperature)).mean())

    bounds = (np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def log_losses(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Return each image's log loss at a temperature: [n], in nats.

    Targets are smoothed by 1 / (n + 2), as in Platt's scaling (1999): n correct predictions do
    not prove that the next one will be, and would otherwise give a temperature of 0.
    """
    n, n_classes = logits.shape
    missing = 1.0 / (n + 2)
    each = log_softmax(logits / temperature, axis=1)
    of_label = each[np.arange(n), labels]
    of_others = (each.sum(axis=1) - of_label) / (n_classes - 1)
    return np.asarray(-((1 - missing) * of_label + missing * of_others))


def reliability_bins(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray
) -> list[ReliabilityBin]:
    """Sort predictions into ten bins by confidence; empty bins are not returned."""
    confidence, is_correct = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    return [
        ReliabilityBin(
            confidence=float(confidence[bins == b].mean()),
            accuracy=float(is_correct[bins == b].mean()),
            n=int((bins == b).sum()),
        )
        for b in np.unique(bins)
    ]


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray
) -> float:
    """Return the mean gap between confidence and accuracy over ten bins (arXiv 1706.04599)."""
    bins = reliability_bins(confidences, correct)
    n = sum(one.n for one in bins)
    return float(sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / n)


def measure_calibration(labels: np.ndarray, probabilities: np.ndarray) -> CalibrationScores:
    """Compute calibration error, log loss and reliability bins of probabilities [n, classes]."""
    confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return CalibrationScores(
        ece=expected_calibration_error(confidence, is_correct),
        log_loss=float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()),
        bins=reliability_bins(confidence, is_correct),
    )


def calibration_change(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray
) -> CalibrationChange:
    """Compare the calibration of probabilities before and after temperature scaling.

    Args:
        labels: int64 [n].
        before: [n, classes], at temperature 1.
        after: [n, classes], at the fitted temperature.
    """
    return CalibrationChange(
        n=len(labels),
        before=measure_calibration(labels, before),
        after=measure_calibration(labels, after),
    )
