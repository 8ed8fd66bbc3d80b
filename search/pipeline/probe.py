"""The linear-probe stage ranks the backbones; the feature-cache stage computes frozen features.

Both come before the first trial: the probe gives a first model and the heads that trials may begin
with, the cache what trials with frozen stages train on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch

from search.cluster.feature_cache_client import FeatureCacheClient
from search.cluster.feature_cache_plan import FeatureCachePlan
from search.cluster.nodes import object_store_bytes
from search.console.formatting import percent
from search.console.progress import Progress
from search.pipeline.ablation import ablation_steps
from search.pipeline.model_file import save_probe
from search.pipeline.prepare import PreparedData
from search.runs.summary import ProbeScore
from spaces.base import Space
from trainables.feature_cache import as_features, bytes_per_image, count_views
from trainables.models.classifier import Weights
from trainables.models.linear_probe import Probe, fit_probe
from trainables.worker import clone_backbone

FEATURE_CACHE_FRACTION = 0.7
"""Fraction of the smallest node's object store; the rest is for images and weights."""


@dataclass(frozen=True)
class ProbeResult:
    """The linear probes of the pretrained backbones.

    Attributes:
        scores: By backbone, the best first: accuracy, and seconds since the stage began.
        heads: By backbone, the weights of the linear head.
    """

    scores: Mapping[str, ProbeScore]
    heads: Mapping[str, Weights]


def plan_feature_cache(prepared: PreparedData) -> FeatureCachePlan:
    """Plan which features may be cached: of training and validation images, never of test ones."""
    space, rows = prepared.space, prepared.rows("train", "val")
    gpus = ray.cluster_resources().get("GPU", 0)

    def view_bytes(backbone: str) -> tuple[int, ...]:
        network = clone_backbone(prepared.features, backbone, 5, torch.device("cpu"))
        return tuple(size * len(rows) for size in bytes_per_image(network, space.image_size))

    return FeatureCachePlan(
        context=ray.put(prepared.features),
        seed=prepared.features.seed,
        rows=rows,
        n_views=space.views,
        n_drawn=count_drawn_views(space),
        view_bytes={name: view_bytes(name) for name in space.backbones},
        budget_bytes=object_store_bytes(FEATURE_CACHE_FRACTION),
        gpus_per_task=0.5 if gpus else 0.0,
    )


def probe_backbones(
    prepared: PreparedData,
    plan: FeatureCachePlan,
    cache: FeatureCacheClient,
    model_path: Path | None,
    progress: Progress,
) -> ProbeResult:
    """Fit and cross-validate a linear probe of every pretrained backbone on the training set.

    Args:
        prepared: Images and backbones.
        plan: Plan of the feature cache.
        cache: Computes the features.
        model_path: Where the best probe so far is saved as a model; None saves none.
        progress: Shows each probe.
    """
    started = perf_counter()
    names = [name for name in prepared.space.backbones if name in prepared.features.weights]
    progress.begin("linear_probe", len(names), "backbones")
    pending = {_start_probe(prepared, plan, cache, name): name for name in names}
    probes: dict[str, Probe] = {}
    seconds: dict[str, float] = {}
    while pending:
        (ready,), _ = ray.wait(list(pending))
        name = pending.pop(ready)
        probe: Probe = ray.get(ready)
        is_best = all(probe.accuracy > other.accuracy for other in probes.values())
        probes[name], seconds[name] = probe, perf_counter() - started
        progress.advance(len(probes), len(names))
        saved = ""
        if is_best and model_path is not None:
            save_probe(prepared, name, probe, model_path)
            saved = f"; baseline model saved: {model_path}"
        progress.say(f"{name}: linear probe {percent(probe.accuracy, 2)} (cross-validated){saved}")
    ranked = sorted(probes, key=lambda name: -probes[name].accuracy)
    return ProbeResult(
        scores={
            name: ProbeScore(accuracy=probes[name].accuracy, seconds=seconds[name])
            for name in ranked
        },
        heads={name: probes[name].head for name in ranked},
    )


def build_feature_cache(
    space: Space, plan: FeatureCachePlan, cache: FeatureCacheClient, progress: Progress
) -> None:
    """Compute the views that the space's trainings can draw, on all nodes."""
    depths = frozen_depths(space)
    stage_outputs = plan.choose_stage_outputs(depths)
    for name, chosen in stage_outputs.items():
        if missing := [depth for depth in depths if depth not in chosen]:
            progress.say(
                f"{name}: features at depth {', '.join(map(str, missing))} are computed when they"
                " are needed: they exceed the memory of the feature cache"
            )
    progress.begin("feature_cache", unit="blocks")
    cache.build(stage_outputs, plan.n_drawn, progress.advance)
    megabytes = sum(cache.sizes_bytes().values()) / 2**20
    progress.say(f"{plan.n_drawn} views of {len(plan.rows)} images, {megabytes:,.0f} MB")


def count_drawn_views(space: Space) -> int:
    """Count the views that trainings of a space can draw: the trials', and the ablation's."""
    strengths = [space.max_augment]
    if space.ablation:
        steps = ablation_steps(space, space.backbones[0])
        strengths += [step.config.augment for step in steps if step.config.freeze_depth > 0]
    return count_views(max(strengths), space.views)


def frozen_depths(space: Space) -> tuple[int, ...]:
    """Return the freeze depths, from 1, that a trial may have."""
    return tuple(depth for depth in space.freeze_depths if depth > 0)


def _start_probe(
    prepared: PreparedData, plan: FeatureCachePlan, cache: FeatureCacheClient, name: str
) -> Any:
    """Start building a backbone's view without augmentation and, after it, its probe."""
    # The probe reads stage output 5; the same pass computes the others that trials will need.
    stage_outputs = {5, *plan.choose_stage_outputs(frozen_depths(prepared.space))[name]}
    cache.start_build(name, sorted(stage_outputs), 1)
    views = cache.view_references(name, 5, 1)
    if views is None:
        raise RuntimeError(f"the views of {name} are not in the cache, though it builds them")
    rows = prepared.rows("train")
    return _fit_probe.remote(
        prepared.images.labels[rows],
        prepared.groups[rows],
        rows,
        views.row_of,
        len(prepared.classes),
        prepared.features.seed,
        *views.views[0],
    )


@ray.remote(max_retries=3)
def _fit_probe(
    labels: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray,
    row_of: np.ndarray,
    n_classes: int,
    seed: int,
    *blocks: np.ndarray,
) -> Probe:
    features = as_features(np.concatenate(blocks))[torch.from_numpy(row_of[rows])]
    return fit_probe(features, torch.from_numpy(labels.copy()), n_classes, seed, groups)
