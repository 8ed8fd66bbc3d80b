"""95% confidence intervals of metrics that hold near 0 and 1, and for few images.

A bootstrap resamples only the mistakes that were made: for a model that made none, its interval
would have no width. These intervals have. `benchmarks.models.intervals` simulates their coverage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from search.runs.summary import Interval
from spaces.rules import Metric
from trainables.metrics import compute_score, metric_value, resample_scores, score_bounds

_Z = 1.959963984540054  # 97.5% quantile of the normal distribution
_DRAWS = 2000
_MAX_VALUES = 4_000_000  # of one batch: cells of confusion matrices, or counts of images
_RESAMPLES = 100  # for a standard error, which then has one of 7% itself


def wilson_interval(n_correct: float, n: int) -> Interval:
    """Return the 95% Wilson score interval of an accuracy (Wilson 1927); [0, 1] for no image.

    `n_correct` need be no whole number: it is n times an accuracy that may have been corrected.
    """
    if n == 0:
        return 0.0, 1.0
    center = (n_correct + _Z**2 / 2) / (n + _Z**2)
    reach = _Z / (n + _Z**2) * (n_correct * (n - n_correct) / n + _Z**2 / 4) ** 0.5
    return max(0.0, center - reach), min(1.0, center + reach)


def normal_interval(value: float, error: float, bounds: Interval) -> Interval:
    """Return the 95% interval of a value with a normal error, within the bounds of all values."""
    low, high = np.clip((value - _Z * error, value + _Z * error), *bounds)
    return float(low), float(high)


def mean_with_error(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return the mean of values, one per image, and its standard error.

    Args:
        values: [n], n >= 1.
        groups: int64 [n]; images of equal numbers are near-duplicates, and count as one
            observation (the cluster-robust standard error). None: there are none.

    Returns:
        The mean, and the error: infinite for a single observation.
    """
    n = len(values)
    _, group_of = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(group_of, values), np.bincount(group_of)
    mean, n_groups = float(sums.sum() / n), len(sizes)
    if n_groups < 2:
        return mean, math.inf
    squares = float(((sums - mean * sizes) ** 2).sum())
    return mean, float(np.sqrt(squares * n_groups / (n_groups - 1)) / n)


def bootstrap_groups(n_groups: int, n_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield bootstrap samples in batches: float64 [samples, groups], how often each was drawn."""
    rng = np.random.default_rng(seed)
    batch_size = max(1, _MAX_VALUES // n_groups)
    for start in range(0, n_samples, batch_size):
        size = min(batch_size, n_samples - start)
        drawn = rng.integers(n_groups, size=(size, n_groups))
        drawn += n_groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_groups)
        yield counts.reshape(size, n_groups).astype(np.float64)


def bootstrap(
    n: int, groups: np.ndarray | None, n_samples: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield bootstrap samples of images in batches: float64 [samples, n], how often each has one.

    Args:
        n: Number of images.
        groups: int64 [n]; a sample has all images of a group equally often. None: there are none.
        n_samples: Number of samples.
        seed: Seed of the samples.
    """
    _, group_of = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    for counts in bootstrap_groups(int(group_of.max()) + 1, n_samples, seed):
        yield counts[:, group_of]


def metric_interval(metric: Metric, logits: np.ndarray, labels: np.ndarray) -> Interval:
    """Return the 95% interval of a metric as people read it, by the bootstrap's standard error.

    Args:
        metric: Which; see `trainables.metrics`.
        logits: [n, classes], n >= 1.
        labels: int64 [n].
    """
    drawn = bootstrap(len(labels), None, _RESAMPLES)
    scores = np.concatenate([resample_scores(metric, logits, labels, counts) for counts in drawn])
    score = compute_score(metric, logits, labels)
    bounds = normal_interval(score, float(scores.std(ddof=1)), score_bounds(metric))
    low, high = sorted(metric_value(metric, bound) for bound in bounds)
    return low, high


def score_difference(
    metric: Metric,
    logits: np.ndarray,
    other: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return how much higher a model's score is than another's, and the standard error of that.

    The error is by a paired bootstrap: both are scored on the same samples of the images.

    Args:
        metric: Which score; see `trainables.metrics`.
        logits: The model's, [n, classes].
        other: The other's.
        labels: int64 [n], n >= 1.
        groups: int64 [n]; images of equal numbers are near-duplicates, and are drawn together.
    """
    difference = compute_score(metric, logits, labels) - compute_score(metric, other, labels)
    drawn = [
        resample_scores(metric, logits, labels, counts)
        - resample_scores(metric, other, labels, counts)
        for counts in bootstrap(len(labels), groups, _RESAMPLES)
    ]
    return difference, float(np.concatenate(drawn).std(ddof=1))


def macro_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return macro precision, recall and F1 over the classes that occur.

    Args:
        confusion: [..., classes, classes], rows the true class; counts or expected counts.

    Returns:
        By name, [...].
    """
    counts = np.asarray(confusion, np.float64)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return _macro_scores(hits, counts.sum(axis=-1), counts.sum(axis=-2))


def macro_intervals(confusion: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Interval]:
    """Return 95% credible intervals of macro precision, recall and F1.

    Each class's predictions are drawn from their Dirichlet posterior (a Bayesian bootstrap, Rubin
    1981), to whose counts one more mistake of the whole matrix is added: it keeps the interval open
    where no mistake was made. Each class has an equal part of it, in a wrong cell that is drawn
    for every sample, so that only cells that are not empty cost time. The counts of a class of
    n images weigh (n - 1) / n, which gives the draws of a fraction p the variance p (1 - p) / n
    instead of p (1 - p) / (n + 1): without that the intervals of small classes would be too narrow.

    Args:
        confusion: Counts, rows the true class; at least one image, two classes or more.
        seed: Seed of the draws.
    """
    counts = np.asarray(confusion, np.float64)
    n_classes, per_class = len(counts), counts.sum(axis=1)
    # A class without images counts in no mean, and is not drawn.
    classes = np.flatnonzero(per_class)
    weight = np.maximum(per_class - 1, 1) / np.maximum(per_class, 1)
    rows, columns = np.nonzero(counts)
    cell_rows = np.concatenate((rows, classes))
    alpha = np.concatenate((counts[rows, columns], np.full(len(classes), 1 / n_classes)))
    alpha *= weight[cell_rows]
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {}
    batch_size = max(1, _MAX_VALUES // len(alpha))
    for start in range(0, _DRAWS, batch_size):
        size = min(batch_size, _DRAWS - start)
        wrong = (classes + rng.integers(1, n_classes, (size, len(classes)))) % n_classes
        cell_columns = np.concatenate((np.broadcast_to(columns, (size, len(rows))), wrong), axis=1)
        values = rng.standard_gamma(alpha, (size, len(alpha)))
        totals = np.maximum(_sums(values, cell_rows, n_classes), 1e-300)
        values *= (per_class / totals)[:, cell_rows]
        hits = _sums(values * (cell_rows == cell_columns), cell_rows, n_classes)
        predicted = _sums(values, cell_columns, n_classes)
        for name, scores in _macro_scores(hits, per_class, predicted).items():
            drawn.setdefault(name, []).append(scores)
    point = macro_scores(counts)
    return {name: _around(float(point[name]), np.concatenate(drawn[name])) for name in point}


def _macro_scores(
    hits: np.ndarray, actual: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """Return macro scores from each class's true positives, images and predictions."""
    present = actual > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(present, values, 0.0).sum(axis=-1) / present.sum(axis=-1))

    return {
        "macro_precision": mean(hits / np.maximum(predicted, 1e-12)),
        "macro_recall": mean(hits / np.maximum(actual, 1e-12)),
        "macro_f1": mean(2 * hits / np.maximum(actual + predicted, 1e-12)),
    }


def _sums(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum [samples, n] values by group: [samples, groups]."""
    offsets = n_groups * np.arange(len(values))[:, None]
    sums = np.bincount((groups + offsets).ravel(), values.ravel(), len(values) * n_groups)
    return sums.reshape(len(values), n_groups)


def _around(point: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, (0.025, 0.975))
    return min(float(low), point), max(float(high), point)
