"""Use the out-of-fold predictions of the best finalist: each is by a member not trained on it.

They give the model's temperature, its out-of-distribution scorer, and possible label errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from search.evaluation.calibration import calibration_change, fit_temperature
from search.evaluation.intervals import wilson_interval
from search.evaluation.label_issues import MAX_ISSUES, count_issues, list_issues, write_issues
from search.evaluation.predictions import Predictions, write_predictions
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import Fold, out_of_fold
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from search.runs.summary import CalibrationChange, Interval
from trainables.models.ood import OODScorer, energy, fit_ood_scorer


@dataclass(frozen=True)
class OutOfFold:
    """Calibrated out-of-fold predictions.

    Attributes:
        predictions: Predictions of all training and validation images.
        temperature: Fitted on them.
        calibration: Calibration before and after temperature scaling.
    """

    predictions: Predictions
    temperature: float
    calibration: CalibrationChange


def predict_out_of_fold(prepared: PreparedData, folds: Sequence[Fold]) -> OutOfFold:
    """Fit the temperature on the out-of-fold logits, and return the calibrated predictions."""
    rows, logits = out_of_fold(folds)
    labels = prepared.images.labels[rows]
    temperature = fit_temperature(logits, labels)
    before, after = (
        torch.softmax(torch.from_numpy(logits) / divisor, 1).numpy()
        for divisor in (1.0, temperature)
    )
    return OutOfFold(
        Predictions(
            names=prepared.names(rows),
            table=prepared.table,
            rows=rows,
            labels=labels,
            probabilities=after,
            classes=prepared.classes,
        ),
        temperature,
        calibration_change(labels, before, after),
    )


def write_out_of_fold(predictions: Predictions, image_size: int, folder: RunFolder) -> None:
    """Write the out-of-fold predictions and the possible label errors among them.

    Writes `folds/oof_predictions.csv`, `folds/label_issues.csv`, the images of the latter, and the
    summary's section `label_issues`.

    Args:
        predictions: Calibrated.
        image_size: Side in pixels of the square that the model sees.
        folder: The run's folder.
    """
    names, labels = predictions.names, predictions.labels
    write_predictions(folder.path / "folds" / "oof_predictions.csv", predictions)
    issues = list_issues(names, labels, predictions.probabilities, predictions.classes)
    write_issues(folder.path / "folds" / "label_issues.csv", issues)
    folder.write_summary(replace(folder.summary, label_issues=count_issues(issues, len(labels))))
    shown = [issue.image for issue in issues[:MAX_ISSUES]]
    places = np.array([names.index(name) for name in shown], np.int64)
    images = (image.numpy() for image in predictions.images(places))
    Gallery(folder.path).save("data", shown, images, image_size)


def fit_ood(folds: Sequence[Fold]) -> OODScorer:
    """Fit the out-of-distribution scorer of the ensemble of folds."""
    residuals = np.concatenate([fold.residuals for fold in folds])
    logits = np.concatenate([fold.logits for fold in folds])
    energies = energy(torch.from_numpy(logits))
    return fit_ood_scorer([fold.subspace for fold in folds], torch.from_numpy(residuals), energies)


def accuracy_interval(folds: Sequence[Fold]) -> Interval:
    """Return the 95% confidence interval of the out-of-fold accuracy."""
    n_correct = sum(round(fold.accuracy * len(fold.rows)) for fold in folds)
    return wilson_interval(n_correct, sum(len(fold.rows) for fold in folds))


def expected_discordance(
    first: Sequence[Fold], second: Sequence[Fold], labels: np.ndarray
) -> float:
    """Return the fraction of images that only one of two finalists predicts correctly out of fold.

    Half an image is added to the count: where it is 0, other images may still be discordant.

    Args:
        first: Folds of one finalist.
        second: Folds of the other, of the same images.
        labels: int64 [N], of the whole table.

    Returns:
        The fraction, in (0, 1).
    """
    (rows, logits), (_, other_logits) = out_of_fold(first), out_of_fold(second)
    is_correct = logits.argmax(1) == labels[rows]
    n_discordant = int((is_correct != (other_logits.argmax(1) == labels[rows])).sum())
    return (n_discordant + 0.5) / (len(rows) + 1)
