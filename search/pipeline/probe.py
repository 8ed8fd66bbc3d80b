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

from search.cluster.feature_cache_actor import BankPlan, start_banks, store_bytes
from search.console.progress import Progress
from search.pipeline.prepare import Material
from search.runs.run_folder import RunFolder
from spaces.base import Space, values_of
from trainables.feature_cache import (
    as_features,
    bytes_a_picture,
    views_up_to,
)
from trainables.models.ensemble import Ensemble, ModelCard
from trainables.models.linear_probe import Probe, fit_probe
from trainables.trial import fresh_backbone

BANKS_SHARE = 0.7
"""Of the smallest node's object store; the rest is for pictures and weights."""


@dataclass(frozen=True)
class RankedProbe:
    """A backbone's probe, and the seconds from the stage's beginning to its end."""

    probe: Probe
    seconds: float


def open_banks(material: Material) -> Material:
    """Start the actor that owns the view banks."""
    space = material.space
    rows = material.rows("train", "val")
    bench = material.bench
    gpus = ray.cluster_resources().get("GPU", 0)
    plan = BankPlan(
        bench=ray.put(bench),
        seed=bench.seed,
        rows=rows,
        n_views=space.views,
        sizes={name: _bank_sizes(material, name, len(rows)) for name in space.backbones},
        budget_bytes=store_bytes(BANKS_SHARE),
        gpus_per_task=0.5 if gpus else 0.0,
    )
    return replace(material, plan=plan, bench=replace(bench, banks=start_banks(plan)))


def probe_backbones(material: Material, folder: RunFolder, progress: Progress) -> Material:
    """Probe every backbone on the training split, and let trainings begin with the probes' heads.

    The best probe so far is always there as `model.pt`, unless a better model is already.
    """
    started = perf_counter()
    bench, rows = material.bench, material.rows("train")
    candidates = [name for name in material.space.backbones if name in bench.weights]
    progress.begin("probe", len(candidates), "backbones")
    pending = {_start_probe(material, name, rows): name for name in candidates}
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
            save_probe(material, name, made.probe, folder.path / "model.pt")
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
    return replace(material, bench=replace(bench, heads=heads))


def build_banks(material: Material, progress: Progress) -> None:
    """Build the augmented views that the space's strengths can draw, across the cluster."""
    space, plan = material.space, material.plan
    if plan is None:
        return
    n_views = views_up_to(strongest(space), space.views)
    depths = frozen_depths(space)
    waiting: list[Any] = []
    for name, boundaries in plan.first_boundaries(depths).items():
        if boundaries:
            waiting += ray.get(material.bench.banks.build.remote(name, boundaries, n_views))
        left_out = [depth for depth in depths if depth not in boundaries]
        if left_out:
            progress.say(
                f"{name}: features at depth {', '.join(map(str, left_out))} are computed as they"
                " are needed: they exceed the memory for banks"
            )
    total = len(waiting)
    progress.begin("banks", total, "blocks")
    while waiting:
        _, waiting = ray.wait(waiting, fetch_local=False)
        progress.advance(total - len(waiting), total)
    ray.get(material.bench.banks.built.remote())
    sizes = ray.get(material.bench.banks.sizes_bytes.remote())
    progress.say(
        f"{n_views} views of {len(plan.rows)} pictures, {sum(sizes.values()) / 2**20:,.0f} MB"
    )


def _bank_sizes(material: Material, backbone: str, n_pictures: int) -> tuple[int, ...]:
    """Return the bytes of a whole bank at boundaries 1 to 5."""
    space = material.space
    network = fresh_backbone(material.bench, backbone, 5, torch.device("cpu"))
    sizes = bytes_a_picture(network, space.image_size)
    return tuple(size * n_pictures * space.views for size in sizes)


def save_probe(material: Material, backbone: str, probe: Probe, path: Path) -> None:
    """Write a probe as a model of one member."""
    space = material.space
    card = ModelCard(
        backbone=backbone,
        classes=material.listing.classes,
        image_size=space.image_size,
        packed_size=space.packed_size,
        framing=space.framing,
        freeze_depth=5,
        hidden_units=0,
        n_members=1,
    )
    stages = fresh_backbone(material.bench, backbone, 5, torch.device("cpu")).stages
    head = {f"head.1.{key}": value for key, value in probe.head.items()}
    Ensemble(card, stages.state_dict(), [head]).save(path)


def strongest(space: Space) -> float:
    """Return the largest strength of augmentation that a trial may have."""
    return max(float(value) for value in values_of(space.params.get("augment", 0.0)))


def frozen_depths(space: Space) -> tuple[int, ...]:
    """Return the depths, from 1, that a trial may freeze to."""
    return tuple(depth for depth in space.freeze_depths if depth > 0)


def _start_probe(material: Material, name: str, rows: np.ndarray) -> Any:
    """Begin a backbone's clean view and, behind it, its probe."""
    bench, plan = material.bench, material.plan
    if plan is None:
        raise RuntimeError("probes need the banks that open_banks starts")
    # 5 is what the probe reads; the same pass fills the other boundaries that trials will want.
    depths = {5, *plan.first_boundaries(frozen_depths(material.space))[name]}
    ray.get(bench.banks.build.remote(name, tuple(sorted(depths)), 1))
    (blocks,), row_of, _ = ray.get(bench.banks.lend.remote(name, 5, 1))
    groups = None if bench.groups is None else bench.groups[rows]
    return _probe.remote(
        bench.labels[rows], groups, rows, row_of, bench.n_classes, bench.seed, *blocks
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
