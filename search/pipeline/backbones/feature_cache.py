"""The feature-cache stage computes the frozen stages' features that trials train on."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from search.cluster.feature_cache_client import FeatureCacheClient
from search.cluster.feature_cache_plan import FeatureCachePlan
from search.cluster.nodes import object_store_bytes
from search.console.progress import Progress
from search.pipeline.ablation import ablation_steps
from search.pipeline.backbones.candidates import Candidate
from search.pipeline.prepare import PreparedData
from spaces.base import Space
from trainables.feature_cache import count_views

FEATURE_CACHE_FRACTION = 0.7
"""Fraction of the smallest node's object store; the rest is for images and weights."""


def plan_feature_cache(
    prepared: PreparedData, candidates: Mapping[str, Candidate]
) -> FeatureCachePlan:
    """Plan which features may be cached: of training and validation images, never of test ones.

    Args:
        prepared: Images, and the backbones that are searched.
        candidates: By backbone, what it costs; more than are searched do not matter.
    """
    space, rows = prepared.space, prepared.rows("train", "val")
    return FeatureCachePlan(
        context=ray.put(prepared.features),
        seed=prepared.features.seed,
        rows=rows,
        n_views=space.views,
        n_drawn=count_drawn_views(space),
        view_bytes={
            name: tuple(size * len(rows) for size in candidates[name].image_bytes)
            for name in (*space.backbones, *probed_alone(prepared))
        },
        budget_bytes=object_store_bytes(FEATURE_CACHE_FRACTION),
        gpus_per_task=gpus_per_task(),
    )


def probed_alone(prepared: PreparedData) -> list[str]:
    """Return the pretrained backbones that are not searched, but whose probes are finalists."""
    return [name for name in prepared.features.weights if name not in prepared.space.backbones]


def build_feature_cache(
    space: Space, plan: FeatureCachePlan, cache: FeatureCacheClient, progress: Progress
) -> None:
    """Compute the views that the space's trainings can draw, on all nodes."""
    depths = frozen_depths(space)
    stage_outputs = plan.choose_stage_outputs(space.backbones, depths)
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


def gpus_per_task() -> float:
    """Return the fraction of a GPU for each task that computes features before the first trial."""
    return 0.5 if ray.cluster_resources().get("GPU", 0) else 0.0


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
