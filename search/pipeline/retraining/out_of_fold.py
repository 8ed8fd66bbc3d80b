"""What the winner's folds tell of the pictures that each of them never saw.

Their predictions give the temperature of the model, the labels that look wrong, and how unlike the
training pictures a picture may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from search.evaluation.calibration import fit_temperature, judge_calibration
from search.evaluation.intervals import wilson_interval
from search.evaluation.label_issues import MOST_ISSUES, list_issues, summarise, write_issues
from search.pipeline.evaluate import write_predictions
from search.pipeline.prepare import Material
from search.pipeline.retraining.kfold import Fold, out_of_fold
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from trainables.models.ood import Doubt, energy, fit_doubt
from trainables.trial import open_table


def learn_from_folds(material: Material, folds: Sequence[Fold], folder: RunFolder) -> float:
    """Write what the out-of-fold predictions tell, and return the temperature they ask for.

    Writes `folds/oof_predictions.csv`, `folds/label_issues.csv` and the pictures of the latter, and
    the summary's sections `calibration` and `label_issues`.
    """
    rows, logits = out_of_fold(folds)
    labels, names = material.bench.labels[rows], material.names(rows)
    classes = material.listing.classes
    temperature = fit_temperature(logits, labels)
    before, after = (
        torch.softmax(torch.from_numpy(logits) / divisor, 1).numpy()
        for divisor in (1.0, temperature)
    )
    write_predictions(folder.path / "folds" / "oof_predictions.csv", names, labels, after, classes)
    issues = list_issues(names, labels, after, classes)
    write_issues(folder.path / "folds" / "label_issues.csv", issues)
    shown = [names.index(issue.picture) for issue in issues[:MOST_ISSUES]]
    table = open_table(material.packed.table, torch.device("cpu"))
    Gallery(folder.path).keep(
        "data",
        [names[i] for i in shown],
        (table[row].numpy() for row in rows[shown]),
        material.space.image_size,
    )
    folder.note("label_issues", summarise(issues, len(labels)))
    folder.note(
        "calibration",
        {
            "temperature": temperature,
            "out_of_fold": {
                "n": len(labels),
                "before": judge_calibration(labels, before),
                "after": judge_calibration(labels, after),
            },
        },
    )
    return temperature


def learn_doubt(folds: Sequence[Fold]) -> Doubt:
    """Return what tells pictures that are unlike the training ones, for the ensemble of folds."""
    residuals = np.concatenate([fold.residuals for fold in folds])
    logits = np.concatenate([fold.logits for fold in folds])
    energies = energy(torch.from_numpy(logits))
    return fit_doubt([fold.subspace for fold in folds], torch.from_numpy(residuals), energies)


def fold_interval(folds: Sequence[Fold]) -> tuple[float, float]:
    """Return the 95 % interval of the share of pictures that the folds have right."""
    n_right = sum(round(fold.accuracy * len(fold.held_out)) for fold in folds)
    return wilson_interval(n_right, sum(len(fold.held_out) for fold in folds))
