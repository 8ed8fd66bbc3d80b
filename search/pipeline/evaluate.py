"""Evaluate the test set and the external test set, once per run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from search.data.decoding import DecodedImages
from search.evaluation.calibration import calibration_change
from search.evaluation.comparison import compare_models
from search.evaluation.metrics import score_predictions
from search.evaluation.predictions import Predictions, write_predictions
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.out_of_fold import OutOfFold
from search.reporting.examples import save_samples
from search.runs.run_folder import RunFolder
from search.runs.summary import ExternalScores
from trainables.images import as_tensor
from trainables.models.ensemble import Ensemble, mean_probabilities


def evaluate(
    prepared: PreparedData,
    ensemble: Ensemble,
    baseline: Ensemble | None,
    out_of_fold: OutOfFold,
    folder: RunFolder,
    expected_discordance: float | None = None,
) -> tuple[Predictions, Predictions | None]:
    """Evaluate the model on the test set and on the external test set.

    Nothing else reads the test set, and this only after everything is chosen. Writes
    `test_predictions.csv`, `external_predictions.csv`, the images that the report shows of both,
    and the summary's sections `test`, `calibration`, `comparison`, `external` and `samples`.

    Args:
        prepared: The images.
        ensemble: The model.
        baseline: What it is compared with, image by image; None compares nothing.
        out_of_fold: How well it is calibrated outside the test set.
        folder: The run's folder.
        expected_discordance: The fraction of images, known from others, that only the model or only
            the baseline predicts correctly.

    Returns:
        The predictions of the test set, and of the external test set if there is one.
    """
    test = _evaluate_test(prepared, ensemble, baseline, out_of_fold, folder, expected_discordance)
    if prepared.external is None:
        return test, None
    return test, _evaluate_external(prepared, prepared.external, ensemble, folder)


def _evaluate_test(
    prepared: PreparedData,
    ensemble: Ensemble,
    baseline: Ensemble | None,
    out_of_fold: OutOfFold,
    folder: RunFolder,
    expected_discordance: float | None = None,
) -> Predictions:
    rows = prepared.rows("test")
    labels, images = prepared.images.labels[rows], prepared.image_rows(rows)
    logits, ood_score = ensemble.predict_with_ood(images)
    before, after = (
        mean_probabilities(logits, temperature).numpy()
        for temperature in (1.0, ensemble.card.temperature)
    )
    predictions = Predictions(
        names=prepared.names(rows),
        table=prepared.table,
        rows=rows,
        labels=labels,
        probabilities=after,
        classes=prepared.classes,
        ood_score=_as_array(ood_score),
    )
    write_predictions(folder.path / "test_predictions.csv", predictions)
    scores = score_predictions(labels, after, prepared.classes)
    scores = replace(scores, n_ood=predictions.n_ood)
    calibration = replace(
        out_of_fold.scaling.scores(), test=calibration_change(labels, before, after)
    )
    folder.write_summary(replace(folder.summary, test=scores, calibration=calibration))
    if baseline is not None:
        predicted = baseline.probabilities(images).numpy().argmax(1)
        compared = compare_models(labels, after.argmax(1), predicted, expected_discordance)
        folder.write_summary(replace(folder.summary, comparison=compared))
    save_samples(folder, ensemble, "data", predictions)
    return predictions


def _evaluate_external(
    prepared: PreparedData, external: DecodedImages, ensemble: Ensemble, folder: RunFolder
) -> Predictions:
    """Predict the external images; score those with labels that are no near-duplicates."""
    labels, table = external.labels, as_tensor(external.pixels)
    logits, ood_score = ensemble.predict_with_ood(table)
    predictions = Predictions(
        names=external.names,
        table=table,
        rows=np.arange(len(labels)),
        labels=labels,
        probabilities=mean_probabilities(logits, ensemble.card.temperature).numpy(),
        classes=prepared.classes,
        ood_score=_as_array(ood_score),
    )
    write_predictions(folder.path / "external_predictions.csv", predictions)
    scored = (labels >= 0) & ~prepared.external_near_duplicates
    external_scores = ExternalScores(
        n=len(labels),
        n_labelled=int(scored.sum()),
        n_near_duplicates=int(prepared.external_near_duplicates.sum()),
        n_ood=predictions.n_ood,
        scores=score_predictions(
            labels[scored], predictions.probabilities[scored], prepared.classes
        )
        if scored.any()
        else None,
    )
    folder.write_summary(replace(folder.summary, external=external_scores))
    save_samples(folder, ensemble, "external", predictions)
    return predictions


def _as_array(ood_score: torch.Tensor | None) -> np.ndarray | None:
    return None if ood_score is None else ood_score.numpy()
