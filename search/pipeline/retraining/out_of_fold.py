"""Use the model's out-of-fold predictions: each is by a member that was not trained on the image.

They give the model's temperature, its out-of-distribution scorer, and possible label errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from scipy.special import softmax

from search.evaluation.calibration import (
    TemperatureScaling,
    fit_temperature,
    log_losses,
    scale_temperature,
)
from search.evaluation.label_issues import MAX_ISSUES, count_issues, list_issues, write_issues
from search.evaluation.predictions import Predictions, write_predictions
from search.evaluation.selection import ImageScores
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import Fold, out_of_fold
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from trainables.models.ood import OODScorer, energy, fit_ood_scorer


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions, as they are calibrated in the model.

    Attributes:
        predictions: Predictions of all training and validation images.
        scaling: The temperature, and whether it helps.
    """

    predictions: Predictions
    scaling: TemperatureScaling


def predict_out_of_fold(prepared: PreparedData, folds: Sequence[Fold]) -> OutOfFold:
    """Calibrate the out-of-fold logits where that helps, and return the predictions."""
    rows, logits = out_of_fold(folds)
    labels = prepared.images.labels
    scaling = scale_temperature(
        [fold.logits for fold in folds],
        [labels[fold.rows] for fold in folds],
        [prepared.groups[fold.rows] for fold in folds],
    )
    return OutOfFold(
        Predictions(
            names=prepared.names(rows),
            table=prepared.table,
            rows=rows,
            labels=labels[rows],
            probabilities=softmax(logits / scaling.temperature, axis=1),
            classes=prepared.classes,
        ),
        scaling,
    )


def average_out_of_fold(parts: Sequence[OutOfFold], weights: Sequence[float]) -> OutOfFold:
    """Return the weighted mean of several finalists' predictions, of the images that all have.

    Args:
        parts: At least one; the temperature scaling is the first one's.
        weights: Their weights, which sum to 1.
    """
    first = parts[0].predictions
    rows = reduce(np.intersect1d, [part.predictions.rows for part in parts])
    places = np.searchsorted(first.rows, rows)
    probabilities = sum(
        weight * part.predictions.probabilities[np.searchsorted(part.predictions.rows, rows)]
        for weight, part in zip(weights, parts, strict=True)
    )
    predictions = replace(
        first,
        names=[first.names[place] for place in places],
        rows=rows,
        labels=first.labels[places],
        probabilities=np.asarray(probabilities),
    )
    return replace(parts[0], predictions=predictions)


def score_images(folds: Sequence[Fold], labels: np.ndarray) -> ImageScores:
    """Return the out-of-fold scores of each image of the folds, by ascending table rows.

    Args:
        folds: One finalist's.
        labels: int64 [N], of the whole table.
    """
    rows, logits = out_of_fold(folds)
    of_rows = labels[rows]
    temperature = fit_temperature(logits, of_rows)
    return ImageScores(
        correct=logits.argmax(1) == of_rows,
        log_losses=log_losses(logits, of_rows, temperature),
        logits=logits.astype(np.float64) / temperature,
        labels=of_rows,
    )


def write_out_of_fold(predictions: Predictions, image_size: int, folder: RunFolder) -> None:
    """Write the out-of-fold predictions and the possible label errors among them.

    Writes `folds/oof_predictions.csv`, `folds/label_issues.csv`, the images of the latter, and the
    summary's section `label_issues`.

    Args:
        predictions: Out-of-fold.
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


def expected_discordance(first: Predictions, second: Predictions) -> float:
    """Return the fraction of images that only one of two models predicts correctly out of fold.

    Half an image is added to the count: where it is 0, other images may still be discordant. Each
    image is predicted by a single member; ensembles, which are compared on the test set, likely
    disagree on fewer, so a power computed from this is pessimistic.

    Args:
        first: Out-of-fold predictions of one.
        second: Those of the other; images that only one of them has do not count.

    Returns:
        The fraction, in (0, 1).
    """
    _, places, other_places = np.intersect1d(first.rows, second.rows, return_indices=True)
    is_correct = first.probabilities.argmax(1) == first.labels
    other_is_correct = second.probabilities.argmax(1) == second.labels
    n_discordant = int((is_correct[places] != other_is_correct[other_places]).sum())
    return (n_discordant + 0.5) / (len(places) + 1)
