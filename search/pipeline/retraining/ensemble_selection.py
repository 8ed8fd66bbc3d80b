"""Greedy ensemble selection: which finalists' predictions are averaged, and with which weights.

Caruana et al. (2004, ICML): from the best model on, the one is added, with replacement, whose
addition gives the lowest log loss of out-of-fold predictions; the best of all these ensembles is
taken. How much that gains is measured by
cross-fitting: the weights that predict a fold's images were selected on the other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from search.evaluation.intervals import mean_with_error, score_difference
from search.pipeline.retraining.kfold import Fold
from spaces.rules import Metric
from trainables.metrics import compute_score

MAX_ROUNDS = 20
"""Additions, at most: weights are multiples of 1 / 20 or coarser."""

MIN_WEIGHT = 0.1
"""Weight below which a model is not worth what it adds to the time of a prediction."""

MIN_GAIN_SE = 1.0
"""Standard errors by which an ensemble has to lower the log loss."""

_ROUNDING = 1e-9  # of a mean log loss; a copy of a model is no gain
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Selection:
    """Selected weights, and what they gain over the best finalist on images outside the selection.

    Attributes:
        weights: float64 [candidates], which sum to 1.
        log_loss: Cross-fitted, in nats.
        log_loss_baseline: The best finalist's.
        log_loss_gain_se: Standard error of the difference, paired by image.
        score: Cross-fitted score by the metric, higher is better.
        score_baseline: The best finalist's.
        score_gain_se: Standard error of the difference of these two, paired by image.
    """

    weights: np.ndarray
    log_loss: float
    log_loss_baseline: float
    log_loss_gain_se: float
    score: float
    score_baseline: float
    score_gain_se: float

    @property
    def enabled(self) -> bool:
        """Whether the ensemble is clearly better by log loss, and not clearly worse by the metric.

        A few hundred images do not show whether a model has one more of them right.
        """
        gain, lost = self.log_loss_baseline - self.log_loss, self.score_baseline - self.score
        is_worse = lost > MIN_GAIN_SE * self.score_gain_se
        return gain > MIN_GAIN_SE * self.log_loss_gain_se and not is_worse


def select_finalists(
    finalists: Sequence[Sequence[Fold]],
    temperatures: Sequence[float],
    best: int,
    metric: Metric,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
) -> Selection | None:
    """Select an ensemble of finalists by the folds that all of them have.

    Args:
        finalists: The folds of each.
        temperatures: Of each; they divide its logits.
        best: Index of the finalist that the ensemble is compared with.
        metric: By which the ensemble must not be clearly worse.
        labels: int64 [N], of the whole table.
        groups: int64 [N], near-duplicates in it; None: there are none.

    Returns:
        None where there is one finalist, or fewer than two folds are common to all.
    """
    by_first_row = [{int(fold.rows[0]): fold for fold in folds} for folds in finalists]
    common = sorted(set.intersection(*(set(folds) for folds in by_first_row)))
    if len(finalists) < 2 or len(common) < 2:
        return None
    fold_rows = [by_first_row[0][first].rows for first in common]
    rows = np.concatenate(fold_rows)
    logits = [np.concatenate([folds[first].logits for first in common]) for folds in by_first_row]
    return cross_fit(
        np.stack([softmax(z / t, axis=1) for z, t in zip(logits, temperatures, strict=True)]),
        labels[rows],
        np.repeat(np.arange(len(common)), [len(one) for one in fold_rows]),
        best,
        metric,
        None if groups is None else groups[rows],
    )


def select_weights(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Select an ensemble greedily, with replacement, by log loss.

    Args:
        probabilities: [candidates, n, classes], out-of-fold.
        labels: int64 [n].

    Returns:
        float64 [candidates], weights that sum to 1, each 0 or at least `MIN_WEIGHT`.
    """
    of_label = probabilities[:, np.arange(len(labels)), labels].astype(np.float64)
    counts = best = np.zeros(len(of_label))
    total, lowest = np.zeros(len(labels)), np.inf
    for n_added in range(1, MAX_ROUNDS + 1):
        losses = -np.log(np.maximum((total + of_label) / n_added, _TINY)).mean(axis=1)
        added = int(losses.argmin())
        total += of_label[added]
        counts = counts + (np.arange(len(counts)) == added)
        if losses[added] < lowest - _ROUNDING:
            lowest, best = losses[added], counts
    best[best < min(MIN_WEIGHT * best.sum(), best.max())] = 0
    return np.asarray(best / best.sum())


def cross_fit(
    probabilities: np.ndarray,
    labels: np.ndarray,
    fold_of: np.ndarray,
    best: int,
    metric: Metric,
    groups: np.ndarray | None = None,
) -> Selection:
    """Select an ensemble on all images, and measure by cross-fitting what it gains.

    Args:
        probabilities: [candidates, n, classes], out-of-fold, of the images that all have.
        labels: int64 [n].
        fold_of: int64 [n], the fold of each image; at least two occur.
        best: Index of the finalist that the ensemble is compared with.
        metric: By which the ensemble must not be clearly worse.
        groups: int64 [n]; images of equal numbers are near-duplicates. None: there are none.
    """
    mixed = np.zeros(probabilities.shape[1:])
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        weights = select_weights(probabilities[:, ~inside], labels[~inside])
        mixed[inside] = mix(probabilities[:, inside], weights)
    losses, baseline = (_log_losses(p, labels) for p in (mixed, probabilities[best]))
    _, standard_error = mean_with_error(baseline - losses, groups)
    both = _logarithms(mixed), _logarithms(probabilities[best])
    if metric == "accuracy":
        correct, correct_of_best = (one.argmax(1) == labels for one in both)
        _, score_error = mean_with_error(correct.astype(float) - correct_of_best, groups)
    else:
        _, score_error = score_difference(metric, *both, labels, groups)
    return Selection(
        weights=select_weights(probabilities, labels),
        log_loss=float(losses.mean()),
        log_loss_baseline=float(baseline.mean()),
        log_loss_gain_se=standard_error,
        score=compute_score(metric, both[0], labels),
        score_baseline=compute_score(metric, both[1], labels),
        score_gain_se=score_error,
    )


def mix(
    probabilities: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return the weighted mean of probabilities: [candidates, n, classes] → [n, classes]."""
    return np.asarray(np.tensordot(np.asarray(weights), np.asarray(probabilities), axes=1))


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(probabilities, _TINY)))


def _log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-_logarithms(of_label))
