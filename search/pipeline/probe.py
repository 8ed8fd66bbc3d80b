"""The probe stage: every backbone ranked, and a first usable model, before the first trial.

And the banks stage after it, which builds the augmented views that trials draw from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch

from search.cluster.feature_cache_actor import FeatureCachePlan, start_feature_cache, store_bytes
from search.console.progress import Progress
from search.pipeline.prepare import PreparedData
from search.runs.run_folder import RunFolder
from spaces.base import Space, values_of
from trainables.feature_cache import (
    as_features,
    bytes_per_image,
    views_up_to,
)
from trainables.models.ensemble import Ensemble, ModelCard
from trainables.models.linear_probe import Probe, fit_probe
from trainables.worker import clone_backbone

FEATURE_CACHE_FRACTION = 0.7
"""Of the smallest node's object store; the rest is for images and weights."""


@dataclass(frozen=True)
class RankedProbe:
    """A backbone's probe, and the seconds from the stage's beginning to its end."""

    probe: Probe
    seconds: float


def open_feature_cache(prepared: PreparedData) -> PreparedData:
    """Start the actor that owns the view banks."""
    space = prepared.space
    rows = prepared.rows("train", "val")
    context = prepared.context
    gpus = ray.cluster_resources().get("GPU", 0)
    plan = FeatureCachePlan(
        context=ray.put(context),
        seed=context.seed,
        rows=rows,
        n_views=space.views,
        sizes={name: _feature_cache_sizes(prepared, name, len(rows)) for name in space.backbones},
        budget_bytes=store_bytes(FEATURE_CACHE_FRACTION),
        gpus_per_task=0.5 if gpus else 0.0,
    )
    return replace(
        prepared, plan=plan, context=replace(context, feature_cache=start_feature_cache(plan))
    )


def probe_backbones(prepared: PreparedData, folder: RunFolder, progress: Progress) -> PreparedData:
    """Probe every backbone on the training split, and let trainings begin with the probes' heads.

    The best probe so far is always there as `model.pt`, unless a better model is already.
    """
    started = perf_counter()
    context, rows = prepared.context, prepared.rows("train")
    candidates = [name for name in prepared.space.backbones if name in context.weights]
    progress.begin("probe", len(candidates), "backbones")
    pending = {_start_probe(prepared, name, rows): name for name in candidates}
    ranked: dict[str, RankedProbe] = {}
    while pending:
        (ready,), _ = ray.wait(list(pending))
        name = pending.pop(ready)
        made = RankedProbe(ray.get(ready), perf_counter() - started)
        is_best = all(made.probe.accuracy > other.probe.accuracy for other in ranked.values())
        ranked[name] = made
        progress.advance(len(ranked), len(candidates))
        is_best = is_best and "best" not in folder.summary  # a run carried on has better already
        if is_best:
            save_probe(prepared, name, made.probe, folder.path / "model.pt")
        progress.say(
            f"{name}: linear probe {made.probe.accuracy:.4f} (cross-validated)"
            + (f"; usable already: {folder.path / 'model.pt'}" if is_best else "")
        )
    ranked = dict(sorted(ranked.items(), key=lambda item: -item[1].probe.accuracy))
    folder.note(
        "probe",
        {
            name: {"accuracy": made.probe.accuracy, "seconds": made.seconds}
            for name, made in ranked.items()
        },
    )
    heads = {name: made.probe.head for name, made in ranked.items()}
    return replace(prepared, context=replace(context, heads=heads))


def build_feature_cache(prepared: PreparedData, progress: Progress) -> None:
    """Build the augmented views that the space's strengths can draw, across the cluster."""
    space, plan = prepared.space, prepared.plan
    if plan is None:
        return
    n_views = views_up_to(max_augment(space), space.views)
    depths = frozen_depths(space)
    waiting: list[Any] = []
    for name, stage_outputs in plan.first_stage_outputs(depths).items():
        if stage_outputs:
            waiting += ray.get(
                prepared.context.feature_cache.build.remote(name, stage_outputs, n_views)
            )
        left_out = [depth for depth in depths if depth not in stage_outputs]
        if left_out:
            progress.say(
                f"{name}: features at depth {', '.join(map(str, left_out))} are computed as they"
                " are needed: they exceed the memory for banks"
            )
    total = len(waiting)
    progress.begin("feature_cache", total, "blocks")
    while waiting:
        _, waiting = ray.wait(waiting, fetch_local=False)
        progress.advance(total - len(waiting), total)
    ray.get(prepared.context.feature_cache.built.remote())
    sizes = ray.get(prepared.context.feature_cache.sizes_bytes.remote())
    progress.say(
        f"{n_views} views of {len(plan.rows)} images, {sum(sizes.values()) / 2**20:,.0f} MB"
    )


def _feature_cache_sizes(prepared: PreparedData, backbone: str, n_images: int) -> tuple[int, ...]:
    """Return the bytes of a whole bank at boundaries 1 to 5."""
    space = prepared.space
    network = clone_backbone(prepared.context, backbone, 5, torch.device("cpu"))
    sizes = bytes_per_image(network, space.image_size)
    return tuple(size * n_images * space.views for size in sizes)


def save_probe(prepared: PreparedData, backbone: str, probe: Probe, path: Path) -> None:
    """Write a probe as a model of one member."""
    space = prepared.space
    card = ModelCard(
        backbone=backbone,
        classes=prepared.manifest.classes,
        image_size=space.image_size,
        cache_size=space.cache_size,
        resize_mode=space.resize_mode,
        freeze_depth=5,
        hidden_units=0,
        n_members=1,
    )
    stages = clone_backbone(prepared.context, backbone, 5, torch.device("cpu")).stages
    head = {f"head.1.{key}": value for key, value in probe.head.items()}
    Ensemble(card, stages.state_dict(), [head]).save(path)


def max_augment(space: Space) -> float:
    """Return the largest strength of augmentation that a trial may have."""
    return max(float(value) for value in values_of(space.params.get("augment", 0.0)))


def frozen_depths(space: Space) -> tuple[int, ...]:
    """Return the depths, from 1, that a trial may freeze to."""
    return tuple(depth for depth in space.freeze_depths if depth > 0)


def _start_probe(prepared: PreparedData, name: str, rows: np.ndarray) -> Any:
    """Begin a backbone's clean view and, behind it, its probe."""
    context, plan = prepared.context, prepared.plan
    if plan is None:
        raise RuntimeError("probes need the banks that open_feature_cache starts")
    # 5 is what the probe reads; the same pass fills the other boundaries that trials will want.
    depths = {5, *plan.first_stage_outputs(frozen_depths(prepared.space))[name]}
    ray.get(context.feature_cache.build.remote(name, tuple(sorted(depths)), 1))
    (blocks,), row_of, _ = ray.get(context.feature_cache.get_views.remote(name, 5, 1))
    groups = None if context.groups is None else context.groups[rows]
    return _probe.remote(
        context.labels[rows], groups, rows, row_of, context.n_classes, context.seed, *blocks
    )


@ray.remote(max_retries=3)
def _probe(
    labels: np.ndarray,
    groups: np.ndarray | None,
    rows: np.ndarray,
    row_of: np.ndarray,
    n_classes: int,
    seed: int,
    *blocks: np.ndarray,
) -> Probe:
    features = as_features(np.concatenate(blocks))[torch.from_numpy(row_of[rows])]
    return fit_probe(features, torch.from_numpy(labels.copy()), n_classes, seed, groups)
