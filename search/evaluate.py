"""Metrics with intervals, and the only reader of the test split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import (
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from search.folder import RunFolder
from search.material import Material
from trainables.model import Ensemble
from trainables.trial import open_table

TOP = 3  # classes named for each external picture


def evaluate(material: Material, ensemble: Ensemble, folder: RunFolder) -> None:
    """Judge the final model on the held-out and on the external pictures.

    The one place that reads the test split, once a run, after everything is chosen.
    """
    classes, rows = material.listing.classes, material.rows("test")
    table = open_table(material.packed.table, torch.device("cpu"))
    labels = material.bench.labels[rows]
    probabilities = ensemble.probabilities(table[torch.from_numpy(rows)]).numpy()
    write_predictions(
        folder.path / "test_predictions.csv",
        material.names(rows),
        labels,
        probabilities,
        classes,
    )
    folder.note("test", score(labels, probabilities, classes))
    if material.external is not None:
        folder.note("external", _evaluate_external(material, ensemble, folder))


def _evaluate_external(material: Material, ensemble: Ensemble, folder: RunFolder) -> dict[str, Any]:
    """Predict the external pictures; judge those that are labelled."""
    if material.external is None:
        raise ValueError("there are no external pictures")
    listing, packed = material.external
    classes = material.listing.classes
    labels = listing.labels[packed.kept]
    table = open_table(packed.table, torch.device("cpu"))[: len(packed.kept)]
    probabilities = ensemble.probabilities(table).numpy()
    names = [listing.names[i] for i in packed.kept]
    write_predictions(
        folder.path / "external_predictions.csv", names, labels, probabilities, classes
    )
    known = labels >= 0
    if known.any():
        judged = score(labels[known], probabilities[known], classes)
        return {**judged, "n": len(labels), "n_labelled": int(known.sum())}
    return {"n": len(labels), "accuracy": None, "top3_accuracy": None}


def score(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Judge predictions.

    Args:
        labels: int64 [n], n >= 1, each in [0, len(classes)).
        probabilities: [n, classes], rows sum to 1.
        classes: Their names.

    Returns:
        `n`, `accuracy`, `accuracy_ci95` (two numbers), `macro_precision`, `macro_recall`,
        `macro_f1` (over the classes that occur), `log_loss` (nats), `top3_accuracy`, `per_class`
        (a dict a class) and `confusion` (rows: true class).
    """
    predicted = probabilities.argmax(1)
    every = list(range(len(classes)))
    present = np.unique(labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    n_right = int((predicted == labels).sum())
    return {
        "n": len(labels),
        "accuracy": n_right / len(labels),
        "accuracy_ci95": wilson_interval(n_right, len(labels)),
        "macro_precision": float(precision[present].mean()),
        "macro_recall": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "log_loss": float(log_loss(labels, _proper(probabilities), labels=every)),
        "top3_accuracy": top_accuracy(labels, probabilities),
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
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def wilson_interval(n_right: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927); [0, 1] of nothing."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def top_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the share of pictures whose class is among the three likeliest."""
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
) -> None:
    """Write one line a picture: its class where known, and the likeliest three with probabilities.

    Args:
        path: Of the CSV file.
        names: Of the pictures.
        labels: int64 [n]; -1 where the class is not known.
        probabilities: [n, classes].
        classes: Their names.
    """
    n_named = min(TOP, len(classes))
    head = ["name", "label", "correct"]
    for place in ("first", "second", "third")[:n_named]:
        head += [place, f"{place}_probability"]
    # A file's name may hold bytes that are no UTF-8; they are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *(f"p:{name}" for name in classes)])
        for name, label, row in zip(names, labels, probabilities, strict=True):
            likeliest = np.argsort(-row, kind="stable")[:n_named]
            known = [classes[label], int(likeliest[0] == label)] if label >= 0 else ["", ""]
            named = [cell for i in likeliest for cell in (classes[i], f"{row[i]:.6f}")]
            writer.writerow([name, *known, *named, *(f"{p:.6f}" for p in row)])


def _proper(probabilities: np.ndarray) -> np.ndarray:
    """Undo single precision's rounding: rows sum to 1 in double precision."""
    doubles = probabilities.astype(np.float64)
    return np.asarray(doubles / doubles.sum(1, keepdims=True))
