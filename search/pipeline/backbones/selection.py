"""Decide which backbones stay in the search, by linear probes of the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.console.formatting import METRIC_NAMES, describe_difference, duration
from search.evaluation.intervals import mean_with_error, score_difference
from search.runs.summary import ProbeScore, RunSummary
from spaces.base import Space
from spaces.rules import Metric

MAX_BEHIND_SE = 2.0
"""Paired standard errors by which a backbone may be behind the best one, and stay."""

RANKING_FRACTION = 0.2
"""Fraction of the time budget that the ranking of several backbones may take."""

CACHE_FRACTION = 0.25
"""Fraction of the time budget that the feature caches of several backbones may take."""


@dataclass(frozen=True)
class RankedProbe:
    """The linear probe of one backbone, and what its features cost.

    Attributes:
        name: Name of the backbone.
        score: Cross-validated, of the metric; NaN where a class is too small for two folds.
        accuracy: Likewise.
        val_accuracy: On the validation images, of the head that trials begin with.
        logits: float64 [n, classes], out of fold, calibrated by one temperature; empty where the
            score is NaN.
        is_correct: bool [n], whether their highest is the label's.
        log_losses: float64 [n], theirs, in nats.
        seconds: Seconds from the begin of the stage until it was known.
        image_seconds: Seconds that the features of one image take, by all nodes together.
        latency_ms: See `candidates.Candidate`.
    """

    name: str
    score: float
    accuracy: float
    val_accuracy: float
    logits: np.ndarray
    is_correct: np.ndarray
    log_losses: np.ndarray
    seconds: float
    image_seconds: float
    latency_ms: float


def select_backbones(
    ranked: Sequence[RankedProbe],
    metric: Metric,
    labels: np.ndarray,
    groups: np.ndarray,
    n_features: int,
    cache_seconds: float,
) -> dict[str, ProbeScore]:
    """Return the scores of the probes, of which those that leave the search have a reason.

    One leaves if its out-of-fold score is behind the best one's by more than `MAX_BEHIND_SE`
    standard errors of the difference, paired by image, near-duplicates counted once. Where the
    metric is the accuracy, the same holds for the log loss, which tells more apart: it counts all
    images, and not only those of which one alone is right. Logits are calibrated, since probes of
    fewer features are less confident. Of the others the lower ones leave if the feature caches
    would take too long. The best one stays.

    Args:
        ranked: At least one, all of the same images.
        metric: What they are compared by.
        labels: int64 [n].
        groups: int64 [n]; images of equal numbers are near-duplicates.
        n_features: Images of the feature cache, times the views that are computed of each.
        cache_seconds: Seconds that all feature caches together may take.

    Returns:
        By backbone, those that stay first, the better first; of equals the one with the lower log
        loss, then the faster.
    """
    order = sorted(ranked, key=_rank)
    scores, spent = {}, 0.0
    for one in order:
        behind, error = _behind(order[0], one, metric, labels, groups)
        needed = n_features * one.image_seconds
        excluded = _reason(order[0], one, metric, groups, behind, error)
        if excluded is None and one is not order[0] and spent + needed > cache_seconds:
            excluded = (
                f"its feature cache would take {duration(needed)}, and"
                f" {duration(max(0.0, cache_seconds - spent))} are left of what caches may take of"
                " the time budget"
            )
        if excluded is None:
            spent += needed
        scores[one.name] = ProbeScore(
            accuracy=one.accuracy,
            score=one.score,
            val_accuracy=one.val_accuracy,
            behind=behind,
            behind_se=error,
            log_loss=float(one.log_losses.mean()) if len(one.log_losses) else math.nan,
            seconds=one.seconds,
            latency_ms=one.latency_ms,
            excluded=excluded,
        )
    return dict(sorted(scores.items(), key=lambda item: item[1].excluded is not None))


def narrow_space(space: Space, scores: Mapping[str, ProbeScore], all_scored: bool = False) -> Space:
    """Return the space without the backbones that are excluded.

    The best of the others takes the place of an excluded one in the space's first trials, and is
    the backbone of those that name none.

    Args:
        space: What the command asks for.
        scores: See `select_backbones`.
        all_scored: Whether a backbone without a score is not searched either.
    """
    unknown = ProbeScore(excluded="not scored" if all_scored else None)
    kept = [name for name in space.backbones if scores.get(name, unknown).excluded is None]
    best = next((name for name in scores if name in kept), None)
    if len(kept) == len(space.backbones) and (best is None or len(kept) == 1):
        return space  # one that is fixed stays a constant
    return space.with_backbones(kept, best or kept[0])


def taking_part(space: Space, scores: Mapping[str, ProbeScore]) -> list[str]:
    """Return the backbones that are searched, and those whose linear probes alone are finalists."""
    probed = [name for name, score in scores.items() if score.in_ensemble]
    return list(dict.fromkeys([*space.backbones, *probed]))


def with_decided_views(space: Space, summary: RunSummary) -> Space:
    """Return the space of a run that is resumed with the number of views that it began with."""
    if not is_decided(summary) or summary.settings is None:
        return space
    return replace(space, views=summary.settings.views)


def is_decided(summary: RunSummary) -> bool:
    """Return whether the linear-probe stage has ended, with which backbones and views are fixed."""
    return "linear_probe" in (summary.stages or {})


def _rank(one: RankedProbe) -> tuple[float, float, float]:
    if not len(one.log_losses):
        return math.inf, math.inf, one.latency_ms
    return -one.score, float(one.log_losses.mean()), one.latency_ms


def _behind(
    best: RankedProbe, one: RankedProbe, metric: Metric, labels: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Return how much lower the score of a probe is than the best one's, and its paired error."""
    if one is best or not len(one.is_correct):
        return 0.0, 0.0
    if metric == "accuracy":
        return mean_with_error(best.is_correct.astype(float) - one.is_correct, groups)
    return score_difference(metric, best.logits, one.logits, labels, groups)


def _reason(
    best: RankedProbe,
    one: RankedProbe,
    metric: Metric,
    groups: np.ndarray,
    behind: float,
    error: float,
) -> str | None:
    """Return why a probe is clearly worse than the best one; None if it is not."""
    more_than = f"more than {MAX_BEHIND_SE:.0f} paired standard errors of"
    if behind > MAX_BEHIND_SE * error:
        gap, by = describe_difference(metric, behind), describe_difference(metric, error, "")
        name = "" if metric == "accuracy" else f"its {METRIC_NAMES[metric]} is "
        return f"{name}{gap} behind {best.name}, {more_than} {by}"
    if metric != "accuracy" or one is best or not len(one.log_losses):
        return None
    more_loss, loss_error = mean_with_error(one.log_losses - best.log_losses, groups)
    if more_loss > MAX_BEHIND_SE * loss_error:
        above = f"its log loss is {more_loss:.3f} above that of {best.name}"
        return f"{above}, {more_than} {loss_error:.3f}"
    return None
