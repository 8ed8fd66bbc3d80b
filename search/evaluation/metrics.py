"""Metrics of predicted probabilities, with their 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.evaluation.calibration import expected_calibration_error
from search.evaluation.intervals import macro_intervals, metric_interval, wilson_interval
from search.evaluation.predictions import TOP_K
from search.runs.summary import ClassScores, Scores
from trainables.metrics import compute_score


def score_predictions(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Scores:
    """Compute the metrics of predicted probabilities.

    Args:
        labels: int64 [n], n >= 1, each in [0, len(classes)).
        probabilities: [n, classes], rows sum to 1.
        classes: Their names.
    """
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

    n, predicted = len(labels), probabilities.argmax(1)
    every = list(range(len(classes)))
    present = np.unique(labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    confusion = confusion_matrix(labels, predicted, labels=every)
    n_correct, found = int((predicted == labels).sum()), np.diagonal(confusion)
    top3 = top_k_accuracy(labels, probabilities)
    intervals = macro_intervals(confusion)
    logits = np.log(np.maximum(_normalised(probabilities), 1e-15))
    auc = compute_score("roc_auc", logits, labels)
    return Scores(
        n=n,
        accuracy=n_correct / n,
        accuracy_ci95=wilson_interval(n_correct, n),
        macro_precision=float(precision[present].mean()),
        macro_precision_ci95=intervals["macro_precision"],
        macro_recall=float(recall[present].mean()),
        macro_recall_ci95=intervals["macro_recall"],
        macro_f1=float(f1[present].mean()),
        macro_f1_ci95=intervals["macro_f1"],
        top3_accuracy=top3,
        top3_accuracy_ci95=wilson_interval(round(top3 * n), n),
        log_loss=float(log_loss(labels, _normalised(probabilities), labels=every)),
        log_loss_ci95=metric_interval("log_loss", logits, labels),
        roc_auc=auc,
        roc_auc_ci95=metric_interval("roc_auc", logits, labels),
        ece=expected_calibration_error(probabilities.max(1), predicted == labels),
        per_class=[
            ClassScores(
                name=name,
                precision=float(precision[i]),
                recall=float(recall[i]),
                recall_ci95=wilson_interval(int(found[i]), int(support[i])),
                f1=float(f1[i]),
                n=int(support[i]),
            )
            for i, name in enumerate(classes)
        ],
        confusion=confusion.tolist(),
    )


def top_k_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the fraction of images whose class is among the three most probable ones."""
    n_classes = probabilities.shape[1]
    if n_classes <= TOP_K:
        return 1.0
    from sklearn.metrics import top_k_accuracy_score

    every = list(range(n_classes))
    return float(top_k_accuracy_score(labels, probabilities, k=TOP_K, labels=every))


def _normalised(probabilities: np.ndarray) -> np.ndarray:
    """Make rows sum to 1 in double precision, as scikit-learn wants it."""
    doubles = probabilities.astype(np.float64)
    return np.asarray(doubles / doubles.sum(1, keepdims=True))
