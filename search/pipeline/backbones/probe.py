"""The linear-probe stage fits the heads that trials may begin with.

It reads the feature cache, and scores a backbone that no ranking has scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch
from threadpoolctl import threadpool_limits

from search.cluster.feature_cache_client import FeatureCacheClient
from search.cluster.feature_cache_plan import FeatureCachePlan
from search.console.formatting import METRIC_NAMES, describe_score, percent
from search.console.progress import Progress
from search.evaluation.calibration import fit_temperature
from search.pipeline.backbones.candidates import Candidate
from search.pipeline.backbones.feature_cache import frozen_depths
from search.pipeline.model_file import save_probe
from search.pipeline.prepare import PreparedData
from search.runs.summary import ProbeScore
from spaces.rules import Metric
from trainables.feature_cache import as_features
from trainables.metrics import compute_score
from trainables.models.classifier import Weights
from trainables.models.linear_probe import MAX_IMAGES, Probe, fit_probe


@dataclass(frozen=True)
class ProbeResult:
    """The linear probes of the pretrained backbones.

    Attributes:
        scores: By backbone, those that are searched first, the best of them first.
        heads: By backbone that is searched or in the ensemble of probes, the weights of the linear
            head.
    """

    scores: Mapping[str, ProbeScore]
    heads: Mapping[str, Weights]


def probe_backbones(
    prepared: PreparedData,
    plan: FeatureCachePlan,
    cache: FeatureCacheClient,
    candidates: Mapping[str, Candidate],
    ranked: ProbeResult,
    model_path: Path | None,
    progress: Progress,
) -> ProbeResult:
    """Fit the heads of the backbones that take part, and score those that no ranking has.

    Args:
        prepared: Images, and the weights of the backbones that take part.
        plan: Plan of the feature cache.
        cache: Computes the features.
        candidates: By backbone, what it costs.
        ranked: What is known already, of this session or an earlier one.
        model_path: Where the best probe so far is saved as a model; None saves none.
        progress: Shows each probe.
    """
    started = perf_counter()
    names = list(prepared.features.weights)
    pending = {}
    for name in names:
        views = _start_first_view(prepared, plan, cache, name)
        if name not in ranked.heads:
            is_new = name not in ranked.scores
            task = start_probe(prepared, plan.rows, views, is_new, MAX_IMAGES)
            pending[task] = name
    progress.begin("linear_probe", len(pending), "backbones")
    scores, heads = dict(ranked.scores), dict(ranked.heads)
    n_probes = len(pending)
    while pending:
        (ready,), _ = ray.wait(list(pending))
        name = pending.pop(ready)
        probe: Probe = ray.get(ready)
        heads[name] = probe.head
        if name not in scores:
            score = score_probe(probe, prepared.space.metric)
            saved = save_if_given(prepared, name, probe, model_path)
            scores[name] = ProbeScore(
                accuracy=probe.accuracy,
                score=score,
                val_accuracy=probe.val_accuracy,
                behind=0.0,
                behind_se=0.0,
                seconds=perf_counter() - started,
                latency_ms=candidates[name].latency_ms,
            )
            progress.say(f"{name}: {describe(probe, prepared.space.metric, score)}{saved}")
        progress.advance(n_probes - len(pending), n_probes)
    scores = dict(sorted(scores.items(), key=lambda item: item[1].excluded is not None))
    return ProbeResult(scores, {name: heads[name] for name in scores if name in heads})


def describe(probe: Probe, metric: Metric, score: float) -> str:
    """Describe a probe's score, and its accuracy if that is not the metric."""
    if metric == "accuracy":
        return f"linear probe {percent(probe.accuracy, 2)} (cross-validated)"
    value = f"{METRIC_NAMES[metric]} {describe_score(metric, score, 2)}"
    return f"linear probe {value}, accuracy {percent(probe.accuracy, 2)} (cross-validated)"


def score_probe(probe: Probe, metric: Metric) -> float:
    """Return a probe's out-of-fold score, calibrated; NaN where it was not cross-validated."""
    return compute_score(metric, calibrated_logits(probe), probe.labels)


def calibrated_logits(probe: Probe) -> np.ndarray:
    """Return a probe's out-of-fold logits, divided by the temperature of least log loss."""
    if not len(probe.logits):
        return probe.logits
    return probe.logits.astype(np.float64) / fit_temperature(probe.logits, probe.labels)


def save_if_given(prepared: PreparedData, name: str, probe: Probe, model_path: Path | None) -> str:
    """Save a probe as a model; return what to say about it."""
    if model_path is None:
        return ""
    save_probe(prepared, name, probe, model_path)
    return f"; baseline model saved: {model_path}"


def _start_first_view(
    prepared: PreparedData, plan: FeatureCachePlan, cache: FeatureCacheClient, name: str
) -> list[Any]:
    """Start building a backbone's view without augmentation; return its blocks at output 5."""
    # Probes read stage output 5; the same pass computes the others that trials will need.
    space = prepared.space
    chosen = plan.choose_stage_outputs(space.backbones, frozen_depths(space))
    stage_outputs = {5, *chosen.get(name, ())}
    cache.start_build(name, sorted(stage_outputs), 1)
    views = cache.view_references(name, 5, 1)
    if views is None:
        raise RuntimeError(f"the views of {name} are not in the cache, though it builds them")
    return views.views[0]


def start_probe(
    prepared: PreparedData,
    rows: np.ndarray,
    blocks: Sequence[Any],
    cross_validate: bool,
    max_images: int | None,
) -> Any:
    """Start fitting a probe on the features of images, given by their rows; see `fit_probe`."""
    arguments = _arguments(prepared, rows, cross_validate, max_images)
    return _fit_in_worker.remote(*arguments, *blocks)


def fit_here(prepared: PreparedData, rows: np.ndarray, blocks: Sequence[np.ndarray]) -> Probe:
    """Fit and cross-validate a probe in this process, exactly as a worker does, on all rows."""
    with threadpool_limits(1):
        return _fit(*_arguments(prepared, rows, cross_validate=True, max_images=None), *blocks)


def _arguments(
    prepared: PreparedData, rows: np.ndarray, cross_validate: bool, max_images: int | None
) -> tuple[Any, ...]:
    return (
        prepared.images.labels[rows],
        prepared.groups[rows],
        prepared.splits[rows] == "train",
        len(prepared.classes),
        prepared.features.seed,
        cross_validate,
        max_images,
    )


def _fit(
    labels: np.ndarray,
    groups: np.ndarray,
    is_train: np.ndarray,
    n_classes: int,
    seed: int,
    cross_validate: bool,
    max_images: int | None,
    *blocks: np.ndarray,
) -> Probe:
    features = as_features(np.concatenate(blocks))
    y = torch.from_numpy(labels.copy())
    return fit_probe(features, y, n_classes, seed, groups, is_train, cross_validate, max_images)


_fit_in_worker: Any = ray.remote(max_retries=3)(_fit)
