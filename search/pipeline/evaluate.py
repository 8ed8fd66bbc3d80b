"""Evaluate the test set, once for each model, and the external test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from search.console.progress import Progress
from search.data.decoding import DecodedImages
from search.evaluation.calibration import calibration_change
from search.evaluation.comparison import compare_models
from search.evaluation.metrics import score_predictions
from search.evaluation.outputs import Outputs, load_outputs
from search.evaluation.predictions import Predictions, write_predictions
from search.evaluation.sample_size import few_images_warnings
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.out_of_fold import OutOfFold
from search.reporting.examples import save_samples
from search.reporting.sentences import describe_evaluations
from search.runs.run_folder import MODEL, RunFolder
from search.runs.summary import Evaluations, ExternalScores, ModelCost
from trainables.images import ImageRows, as_tensor
from trainables.models.digest import model_digest
from trainables.models.latency import measure_latency
from trainables.models.model import Model, predict
from trainables.worker import training_device

OUTPUTS = "evaluation.npz"
TEST_PREDICTIONS = "test_predictions.csv"
"""Files of the run's folder."""


def evaluate(
    prepared: PreparedData,
    model: Model,
    baseline: Model | None,
    out_of_fold: OutOfFold,
    folder: RunFolder,
    progress: Progress,
    expected_discordance: float | None = None,
) -> tuple[Predictions, Predictions | None]:
    """Evaluate the model on the test set and on the external test set.

    No model but the final one and its baseline predicts the test set, and these only after
    everything is chosen. Where a resumed run ends with the model that it ended with before, the
    test set is not evaluated again: `evaluation.npz` has what they predicted. Writes this file,
    `test_predictions.csv`, `external_predictions.csv`, the images that the report shows of both,
    and the summary's sections `evaluation`, `test`, `calibration`, `comparison`, `model_cost`,
    `external` and `samples`.

    Args:
        prepared: The images.
        model: The model.
        baseline: What it is compared with, image by image; None compares nothing.
        out_of_fold: How well it is calibrated outside the test set.
        folder: The run's folder.
        progress: Shows whether the test set is evaluated again.
        expected_discordance: The fraction of images, known from others, that only the model or only
            the baseline predicts correctly.

    Returns:
        The predictions of the test set, and of the external test set if there is one.
    """
    test = _evaluate_test(
        prepared, model, baseline, out_of_fold, folder, progress, expected_discordance
    )
    with progress.tolerating("what the model costs"):
        cost = measure_cost(model, folder.path / MODEL)
        folder.write_summary(replace(folder.summary, model_cost=cost))
    if prepared.external is None:
        return test, None
    return test, _evaluate_external(prepared, prepared.external, model, folder, progress)


def measure_cost(model: Model, path: Path) -> ModelCost:
    """Measure the size of a model and the time of a prediction, alone and in batches of 32.

    Args:
        model: The model.
        path: Its file.
    """
    device = training_device()
    size = model.card.image_size
    one, many = (measure_latency(model, size, device, n) for n in (1, 32))
    model.to("cpu")
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        megabytes=path.stat().st_size / 1e6,
        latency_ms=one,
        latency_ms_batch_32=many,
        device=device.type,
    )


def _evaluate_test(
    prepared: PreparedData,
    model: Model,
    baseline: Model | None,
    out_of_fold: OutOfFold,
    folder: RunFolder,
    progress: Progress,
    expected_discordance: float | None,
) -> Predictions:
    rows = prepared.rows("test")
    labels = prepared.images.labels[rows]
    outputs = _predict_test(prepared.image_rows(rows), model, baseline, folder, progress)
    before, after = outputs.uncalibrated, outputs.probabilities
    predictions = Predictions(
        names=prepared.names(rows),
        table=prepared.table,
        rows=rows,
        labels=labels,
        probabilities=after,
        classes=prepared.classes,
        ood_score=outputs.ood_score,
    )
    write_predictions(folder.path / TEST_PREDICTIONS, predictions)
    scores = score_predictions(labels, after, prepared.classes)
    scores = replace(scores, n_ood=predictions.n_ood)
    calibration = replace(
        out_of_fold.scaling.scores(), test=calibration_change(labels, before, after)
    )
    data = folder.summary.data
    if data is not None:
        n_correct = round(scores.accuracy * scores.n)
        data = replace(data, warnings=few_images_warnings(prepared.class_counts(), n_correct))
    folder.write_summary(replace(folder.summary, test=scores, calibration=calibration, data=data))
    if baseline is not None and outputs.baseline_classes is not None:
        compared = compare_models(
            labels, after.argmax(1), outputs.baseline_classes, expected_discordance
        )
        folder.write_summary(replace(folder.summary, comparison=compared))
    if "data" not in (folder.summary.samples or {}):
        with progress.tolerating("the gallery of test images"):
            save_samples(folder, model, "data", predictions)
    return predictions


def _predict_test(
    images: ImageRows,
    model: Model,
    baseline: Model | None,
    folder: RunFolder,
    progress: Progress,
) -> Outputs:
    """Predict the test set, or return what the same models predicted in an earlier session."""
    path = folder.path / OUTPUTS
    digest = model_digest(model)
    of_baseline = None if baseline is None else model_digest(baseline)
    saved = load_outputs(path, len(images))
    earlier = _earlier_evaluations(folder, saved)
    if saved is not None and saved.are_of(digest, of_baseline):
        folder.write_summary(replace(folder.summary, evaluation=earlier))
        progress.say("the test set is not evaluated again: the model is unchanged")
        return saved
    models = earlier.models if digest in earlier.models else [*earlier.models, digest]
    evaluations = Evaluations(times=earlier.times + 1, models=models)
    # First, so that an evaluation counts whose result a crash loses.
    folder.write_summary(replace(folder.summary, evaluation=evaluations, samples=None))
    if text := describe_evaluations(evaluations):
        progress.warn(text)
    predicted = predict(model, images)
    outputs = Outputs(
        model=digest,
        probabilities=predicted.probabilities.numpy(),
        uncalibrated=predicted.uncalibrated.numpy(),
        ood_score=_as_array(predicted.ood_score),
        baseline=of_baseline,
        baseline_classes=None
        if baseline is None
        else predict(baseline, images).probabilities.numpy().argmax(1),
    )
    outputs.save(path)
    return outputs


def _earlier_evaluations(folder: RunFolder, saved: Outputs | None) -> Evaluations:
    """Return the evaluations by earlier sessions; at least one where it has left its files."""
    if folder.summary.evaluation is not None:
        return folder.summary.evaluation
    if saved is not None:
        return Evaluations(times=1, models=[saved.model])
    if (folder.path / TEST_PREDICTIONS).is_file():
        return Evaluations(times=1, models=["unknown"])
    return Evaluations(times=0, models=[])


def _evaluate_external(
    prepared: PreparedData,
    external: DecodedImages,
    model: Model,
    folder: RunFolder,
    progress: Progress,
) -> Predictions:
    """Predict the external images; score those with labels that are no near-duplicates."""
    labels, table = external.labels, as_tensor(external.pixels)
    predicted = predict(model, table)
    predictions = Predictions(
        names=external.names,
        table=table,
        rows=np.arange(len(labels)),
        labels=labels,
        probabilities=predicted.probabilities.numpy(),
        classes=prepared.classes,
        ood_score=_as_array(predicted.ood_score),
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
    with progress.tolerating("the gallery of external images"):
        save_samples(folder, model, "external", predictions)
    return predictions


def _as_array(ood_score: torch.Tensor | None) -> np.ndarray | None:
    return None if ood_score is None else ood_score.numpy()
