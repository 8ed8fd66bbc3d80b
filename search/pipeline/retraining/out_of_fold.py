"""What the winner's folds tell of the images that each of them never saw.

Their predictions give the temperature of the model, the labels that look wrong, and how unlike the
training images an image may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from search.evaluation.calibration import fit_temperature, measure_calibration
from search.evaluation.intervals import wilson_interval
from search.evaluation.label_issues import MAX_ISSUES, list_issues, summarise, write_issues
from search.pipeline.evaluate import write_predictions
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import Fold, out_of_fold
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from trainables.models.ood import OODScorer, energy, fit_ood_scorer
from trainables.worker import open_table


def learn_from_folds(prepared: PreparedData, folds: Sequence[Fold], folder: RunFolder) -> float:
    """Write what the out-of-fold predictions tell, and return the temperature they ask for.

    Writes `folds/oof_predictions.csv`, `folds/label_issues.csv` and the images of the latter, and
    the summary's sections `calibration` and `label_issues`.
    """
    rows, logits = out_of_fold(folds)
    labels, names = prepared.context.labels[rows], prepared.names(rows)
    classes = prepared.manifest.classes
    temperature = fit_temperature(logits, labels)
    before, after = (
        torch.softmax(torch.from_numpy(logits) / divisor, 1).numpy()
        for divisor in (1.0, temperature)
    )
    write_predictions(folder.path / "folds" / "oof_predictions.csv", names, labels, after, classes)
    issues = list_issues(names, labels, after, classes)
    write_issues(folder.path / "folds" / "label_issues.csv", issues)
    shown = [names.index(issue.image) for issue in issues[:MAX_ISSUES]]
    table = open_table(prepared.decoded.table, torch.device("cpu"))
    Gallery(folder.path).keep(
        "data",
        [names[i] for i in shown],
        (table[row].numpy() for row in rows[shown]),
        prepared.space.image_size,
    )
    folder.note("label_issues", summarise(issues, len(labels)))
    folder.note(
        "calibration",
        {
            "temperature": temperature,
            "out_of_fold": {
                "n": len(labels),
                "before": measure_calibration(labels, before),
                "after": measure_calibration(labels, after),
            },
        },
    )
    return temperature


def fit_ood(folds: Sequence[Fold]) -> OODScorer:
    """Return what tells images that are unlike the training ones, for the ensemble of folds."""
    residuals = np.concatenate([fold.residuals for fold in folds])
    logits = np.concatenate([fold.logits for fold in folds])
    energies = energy(torch.from_numpy(logits))
    return fit_ood_scorer([fold.subspace for fold in folds], torch.from_numpy(residuals), energies)


def fold_interval(folds: Sequence[Fold]) -> tuple[float, float]:
    """Return the 95 % interval of the share of images that the folds have right."""
    n_right = sum(round(fold.accuracy * len(fold.held_out)) for fold in folds)
    return wilson_interval(n_right, sum(len(fold.held_out) for fold in folds))
