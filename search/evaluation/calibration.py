"""Calibration: temperature scaling, expected calibration error, reliability diagrams.

One temperature divides all logits before the softmax (Guo et al., arXiv 1706.04599). It is fitted
on out-of-fold logits: each image's come from the one member that never saw it. A model has it only
where it clearly lowers the log loss of images that it was not fitted on. It calibrates single
members: their mean, the ensemble, is less confident, and may be underconfident with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from search.evaluation.intervals import mean_with_error
from search.runs.summary import Calibration, CalibrationChange, CalibrationScores, ReliabilityBin

N_BINS = 10  # of confidence
MIN_IMAGES = 30
"""Fewer have no standard error to speak of, and are not scaled."""
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


@dataclass(frozen=True)
class TemperatureScaling:
    """A temperature, and what it does to images that it was not fitted on.

    Attributes:
        fitted_temperature: Fitted on all images.
        change: Calibration at temperature 1 and, cross-fitted, at a temperature that was fitted on
            the other folds.
        log_loss_gain: What it takes off the log loss of these images, in nats.
        log_loss_gain_se: Its standard error, paired by image; near-duplicates count as one.
    """

    fitted_temperature: float
    change: CalibrationChange
    log_loss_gain: float
    log_loss_gain_se: float

    @property
    def applied(self) -> bool:
        """Whether the log loss falls by more than one standard error."""
        return self.change.n >= MIN_IMAGES and self.log_loss_gain > self.log_loss_gain_se

    @property
    def temperature(self) -> float:
        """The model's temperature: 1 where scaling is not applied."""
        return self.fitted_temperature if self.applied else 1.0

    def scores(self) -> Calibration:
        """Return the summary's section, as far as it is known before the test set is evaluated."""
        return Calibration(
            temperature=self.temperature,
            applied=self.applied,
            fitted_temperature=self.fitted_temperature,
            log_loss_gain_se=self.log_loss_gain_se,
            out_of_fold=self.change,
        )


def scale_temperature(
    logits: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    groups: Sequence[np.ndarray] | None = None,
) -> TemperatureScaling:
    """Fit a temperature, and measure by cross-fitting whether it helps.

    Args:
        logits: By fold, [n, classes] of the images that its member never saw; of a single fold, one
            half measures whether the temperature of the other helps.
        labels: By fold, int64 [n].
        groups: By fold, int64 [n]; images of equal numbers are near-duplicates. None: there are
            none.
    """
    if len(logits) == 1:
        of_images = None if groups is None else groups[0]
        logits, labels, groups = _split_fold(logits[0], labels[0], of_images)
    others = [[i for i in range(len(logits)) if i != fold] for fold in range(len(logits))]
    temperatures = [
        fit_temperature(
            np.concatenate([logits[i] for i in rest]), np.concatenate([labels[i] for i in rest])
        )
        for rest in others
    ]
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    before = softmax(all_logits.astype(np.float64), axis=1)
    divided = [one / t for one, t in zip(logits, temperatures, strict=True)]
    after = softmax(np.concatenate(divided).astype(np.float64), axis=1)
    gains = _label_losses(all_labels, before) - _label_losses(all_labels, after)
    gain, standard_error = mean_with_error(
        gains, None if groups is None else np.concatenate(groups)
    )
    return TemperatureScaling(
        fitted_temperature=fit_temperature(all_logits, all_labels),
        change=calibration_change(all_labels, before, after),
        log_loss_gain=gain,
        log_loss_gain_se=standard_error,
    )


def _split_fold(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Split the images of the only fold into halves; near-duplicates stay together."""
    groups = np.arange(len(labels)) if groups is None else groups
    _, number = np.unique(groups, return_inverse=True)
    halves = [np.flatnonzero(number % 2 == half) for half in (0, 1)]
    return [logits[i] for i in halves], [labels[i] for i in halves], [groups[i] for i in halves]


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
    return CalibrationScores(
        ece=expected_calibration_error(confidence, is_correct),
        log_loss=float(_label_losses(labels, probabilities).mean()),
        bins=reliability_bins(confidence, is_correct),
    )


def _label_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return minus the logarithm of each label's probability: float64 [n]."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)))


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
