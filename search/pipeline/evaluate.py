"""Metrics with intervals, and the only reader of the test split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import (
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor

from search.data.manifest import Manifest
from search.data.packing import DecodedImages
from search.evaluation.calibration import expected_calibration_error, measure_calibration
from search.evaluation.comparison import compare
from search.evaluation.intervals import macro_intervals, wilson_interval
from search.pipeline.predictions_tmp import Predictions
from search.pipeline.prepare import PreparedData
from search.reporting.examples import save_samples
from search.runs.run_folder import RunFolder
from trainables.images import ImageRows
from trainables.models.ensemble import Ensemble, mean_probabilities
from trainables.worker import open_table

TOP = 3  # classes named for each external image


def evaluate(
    prepared: PreparedData, ensemble: Ensemble, folder: RunFolder, baseline: Ensemble | None = None
) -> tuple[Predictions, Predictions | None]:
    """Judge the final model on the held-out and on the external images.

    The one place that reads the test split, once a run, after everything is chosen.

    Args:
        prepared: What the run works on.
        ensemble: The model.
        folder: Gets the predictions, and the summary's sections.
        baseline: What the model is compared with, image by image.

    Returns:
        The held-out images, and the external ones where there are any.
    """
    classes, rows = prepared.manifest.classes, prepared.rows("test")
    table = open_table(prepared.decoded.table, torch.device("cpu"))
    labels = prepared.context.labels[rows]
    images = ImageRows(table, torch.from_numpy(rows))
    logits, ood_score = ensemble.predict_with_ood(images)
    before, probabilities = (
        mean_probabilities(logits, temperature).numpy()
        for temperature in (1.0, ensemble.card.temperature)
    )
    write_predictions(
        folder.path / "test_predictions.csv",
        prepared.names(rows),
        labels,
        probabilities,
        classes,
        ood_score,
    )
    folder.note("test", score(labels, probabilities, classes) | count_ood(ood_score))
    save_samples(folder, ensemble, "data", images)
    folder.note(
        "calibration",
        {
            "temperature": ensemble.card.temperature,
            **folder.summary.get("calibration", {}),
            "test": {
                "n": len(labels),
                "before": measure_calibration(labels, before),
                "after": measure_calibration(labels, probabilities),
            },
        },
    )
    if baseline is not None:
        of_baseline = baseline.probabilities(images).numpy().argmax(1)
        compared = compare(labels, probabilities.argmax(1), of_baseline)
        folder.note("comparison", compared.as_json())
    held_out = Predictions(prepared.names(rows), table, rows, labels, probabilities)
    if prepared.external is None:
        return held_out, None
    return held_out, _evaluate_external(prepared, prepared.external, ensemble, folder)


def _evaluate_external(
    prepared: PreparedData,
    external: tuple[Manifest, DecodedImages],
    ensemble: Ensemble,
    folder: RunFolder,
) -> Predictions:
    """Predict the external images; judge those with labels, but no copies of the set's."""
    manifest, decoded = external
    classes = prepared.manifest.classes
    labels = manifest.labels[decoded.kept]
    table = open_table(decoded.table, torch.device("cpu"))[: len(decoded.kept)]
    logits, ood_score = ensemble.predict_with_ood(table)
    probabilities = mean_probabilities(logits, ensemble.card.temperature).numpy()
    names = [manifest.names[i] for i in decoded.kept]
    write_predictions(
        folder.path / "external_predictions.csv", names, labels, probabilities, classes, ood_score
    )
    save_samples(folder, ensemble, "external", table)
    known = labels >= 0
    section: dict[str, Any] = {"n": len(labels), "accuracy": None, "top3_accuracy": None}
    if prepared.external_near_duplicates is not None:
        known &= ~prepared.external_near_duplicates
        section["n_twins"] = int(prepared.external_near_duplicates.sum())
    if known.any():
        section |= score(labels[known], probabilities[known], classes)
        section |= {"n": len(labels), "n_labelled": int(known.sum())}
    folder.note("external", section | count_ood(ood_score))
    return Predictions(names, table, np.arange(len(names)), labels, probabilities)


def count_ood(ood_score: Tensor | None) -> dict[str, int]:
    """Count the images that are not like the training images, where the model can tell."""
    return {} if ood_score is None else {"n_ood": int((ood_score > 1).sum())}


def score(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Judge predictions.

    Args:
        labels: int64 [n], n >= 1, each in [0, len(classes)).
        probabilities: [n, classes], rows sum to 1.
        classes: Their names.

    Returns:
        `n`, `accuracy`, `macro_precision`, `macro_recall`, `macro_f1` (over the classes that
        occur), `top3_accuracy`, each with its 95 % interval in `…_ci95` (two numbers), `log_loss`
        (nats), `ece` (expected calibration error), `per_class` (a dict a class) and `confusion`
        (rows: true class).
    """
    predicted = probabilities.argmax(1)
    every = list(range(len(classes)))
    present = np.unique(labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    n_right = int((predicted == labels).sum())
    top = top_accuracy(labels, probabilities)
    confusion = confusion_matrix(labels, predicted, labels=every).tolist()
    intervals = macro_intervals(confusion)
    return {
        "n": len(labels),
        "accuracy": n_right / len(labels),
        "accuracy_ci95": wilson_interval(n_right, len(labels)),
        "macro_precision": float(precision[present].mean()),
        "macro_recall": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        **{f"{name}_ci95": bounds for name, bounds in intervals.items()},
        "log_loss": float(log_loss(labels, _proper(probabilities), labels=every)),
        "ece": expected_calibration_error(probabilities.max(1), predicted == labels),
        "top3_accuracy": top,
        "top3_accuracy_ci95": wilson_interval(round(top * len(labels)), len(labels)),
        "per_class": [
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "recall_ci95": wilson_interval(
                    int(((predicted == i) & (labels == i)).sum()), int(support[i])
                ),
                "f1": float(f1[i]),
                "n": int(support[i]),
            }
            for i, name in enumerate(classes)
        ],
        "confusion": confusion,
    }


def top_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the share of images whose class is among the three likeliest."""
    n_classes = probabilities.shape[1]
    if n_classes <= TOP:
        return 1.0
    return float(top_k_accuracy_score(labels, probabilities, k=TOP, labels=list(range(n_classes))))


def write_predictions(
    path: Path,
    names: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    ood_score: Tensor | None = None,
) -> None:
    """Write one line an image: its class where known, and the likeliest three with probabilities.

    Args:
        path: Of the CSV file.
        names: Of the images.
        labels: int64 [n]; -1 where the class is not known.
        probabilities: [n, classes].
        classes: Their names.
        ood_score: How unlike the training images each is, [n]; above 1 it is not like them.
    """
    n_named = min(TOP, len(classes))
    head = ["name", "label", "correct"]
    for place in ("first", "second", "third")[:n_named]:
        head += [place, f"{place}_probability"]
    # A file's name may hold bytes that are no UTF-8; they are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        head += [] if ood_score is None else ["ood_score", "is_ood"]
        writer.writerow([*head, *(f"p:{name}" for name in classes)])
        ood_scores: list[float | None] = (
            [None] * len(names) if ood_score is None else ood_score.tolist()
        )
        for name, label, row, doubted in zip(names, labels, probabilities, ood_scores, strict=True):
            likeliest = np.argsort(-row, kind="stable")[:n_named]
            known = [classes[label], int(likeliest[0] == label)] if label >= 0 else ["", ""]
            named = [cell for i in likeliest for cell in (classes[i], f"{row[i]:.6f}")]
            marks = [] if doubted is None else [f"{doubted:.4f}", int(doubted > 1)]
            writer.writerow([name, *known, *named, *marks, *(f"{p:.6f}" for p in row)])


def _proper(probabilities: np.ndarray) -> np.ndarray:
    """Undo single precision's rounding: rows sum to 1 in double precision."""
    doubles = probabilities.astype(np.float64)
    return np.asarray(doubles / doubles.sum(1, keepdims=True))
