"""What the trainings of one worker share: images, backbones and cached features."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError

from spaces.base import TrialConfig, Value
from trainables.batches import ImageSet
from trainables.compute import compute_with
from trainables.feature_cache import (
    FeatureCache,
    as_features,
    build_view,
    view_magnitude,
    views_up_to,
)
from trainables.images import ImageRows, as_tensor
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.batchnorm_folding import fold_batchnorm
from trainables.models.ensemble import Weights
from trainables.trainer import Trainer


@dataclass(frozen=True)
class TrainingContext:
    """What all trainings of a run share. Large things are in the object store.

    Attributes:
        table: The packed images, uint8 [N, S, S, 3]; see `open_table`.
        labels: int64 [N].
        n_classes: Labels are in [0, n_classes).
        image_size: Side in pixels that a backbone sees.
        flip: Whether a mirrored image is still of its class.
        weights: By backbone, a reference to its pretrained state dict; one that is missing starts
            from scratch.
        n_views: V, the views of each image in a bank.
        feature_cache: Actor handle of `FeatureCacheActor`; None computes all features as needed.
        heads: By backbone, the probe's head that trainings begin with.
        epochs: The full length of a trial.
        patience: See `Space.patience`.
        seed: Of the run.
        groups: int64 [N]; images of equal numbers are near-duplicates, and stay in one fold.
            None is each on its own.
    """

    table: Any
    labels: np.ndarray
    n_classes: int
    image_size: int
    flip: bool
    weights: Mapping[str, Any]
    n_views: int
    feature_cache: Any
    heads: Mapping[str, Weights]
    epochs: int
    patience: int | None
    seed: int
    groups: np.ndarray | None = None

    def images(self, device: torch.device) -> ImageSet:
        """Open the shared table: without a copy, or once a worker on the GPU where it fits."""
        return ImageSet(
            table=open_table(self.table, device),
            labels=as_tensor(self.labels),
            n_classes=self.n_classes,
            image_size=self.image_size,
            flip=self.flip,
        )

    def cache(self, config: TrialConfig) -> FeatureCache | None:
        """Open the bank that a config draws from; None where there is none for it."""
        return self._lend(config.backbone, config.freeze_depth, config.augment)

    def pooled_bank(self, backbone: str) -> FeatureCache | None:
        """Open the clean pooled features of a backbone; None where there are none."""
        return self._lend(backbone, 5, 0.0)

    def _lend(self, backbone: str, stage_output: int, augment: float) -> FeatureCache | None:
        if self.feature_cache is None or stage_output == 0:
            return None
        attempts_left = 3
        while True:
            lent = ray.get(
                self.feature_cache.get_views.remote(
                    backbone, stage_output, views_up_to(augment, self.n_views)
                )
            )
            if lent is None:
                return None
            views, row_of, block_size = lent
            try:
                arrays = [ray.get(blocks, timeout=VIEWS_TIMEOUT_SECONDS) for blocks in views]
                tensors = tuple(tuple(map(as_features, blocks)) for blocks in arrays)
                return FeatureCache(tensors, self.n_views, as_tensor(ray.get(row_of)), block_size)
            except GetTimeoutError:
                continue  # perhaps lost with a machine since: who owns them looks again
            except ObjectLostError:  # with the actor that owned them; it is there again, and builds
                attempts_left -= 1
                if not attempts_left:
                    raise


VIEWS_TIMEOUT_SECONDS = 30.0
"""How long a view is waited for before its owner is asked again."""


GPU_TABLE_FRACTION = 0.2
"""Of a GPU's free memory: packed images up to that are kept on the card."""


_tables: dict[tuple[Any, torch.device], torch.Tensor] = {}


def open_table(table: Any, device: torch.device) -> torch.Tensor:
    """Open the packed images, shared by all workers of a node; a GPU gets its own copy.

    Args:
        table: A reference into the object store, the path of a file to be mapped, or a
            `search.cluster.shared_file.SharedFile`, whose copy on this machine is.
        device: Where they are wanted. They stay on the CPU where they would crowd the GPU.
    """
    if isinstance(table, ray.ObjectRef):
        shared = ray.get(table)
    else:
        path = table if isinstance(table, Path) else table.local_path()
        shared = np.load(path, mmap_mode="r")
    if device.type == "cpu":
        return as_tensor(shared)
    if (table, device) not in _tables:
        free, _ = torch.cuda.mem_get_info(device)
        fits = shared.nbytes <= GPU_TABLE_FRACTION * free
        _tables[table, device] = as_tensor(shared).to(device if fits else "cpu")
    return _tables[table, device]


_Kind = tuple[str, torch.device, Any, int]


_pristine: dict[_Kind, Backbone] = {}


_fused: dict[_Kind, Backbone] = {}


def _kind(context: TrainingContext, name: str, device: torch.device) -> _Kind:
    """Return what a worker tells backbones apart by: of one name there may be other weights."""
    return name, device, context.weights.get(name), context.seed


def clone_backbone(
    context: TrainingContext, name: str, depth: int, device: torch.device
) -> Backbone:
    """Return a backbone whose unfrozen stages are a copy of its own; frozen ones are shared.

    A worker reads each backbone's weights once and keeps them for the trials to come.
    """
    kind = _kind(context, name, device)
    if kind not in _pristine:
        reference = context.weights.get(name)
        state_dict = None if reference is None else ray.get(reference)
        backbone = create_backbone(name, state_dict, seed=context.seed)
        _pristine[kind] = backbone.to(device).to(memory_format=torch.channels_last)
    pristine = _pristine[kind]
    shared = {id(stage): stage for stage in pristine.stages[:depth]}
    return copy.deepcopy(pristine, shared)


def folded_backbone(context: TrainingContext, name: str, device: torch.device) -> Backbone:
    """Return a pretrained backbone that is made for inference, once a worker."""
    kind = _kind(context, name, device)
    if kind not in _fused:
        _fused[kind] = fold_batchnorm(clone_backbone(context, name, 5, device))
    return _fused[kind]


def build_block(
    context: TrainingContext,
    backbone: str,
    rows: np.ndarray,
    view: int,
    n_views: int,
    stage_outputs: Sequence[int],
    seed: int,
) -> list[np.ndarray]:
    """Compute one view of some images, given by their table rows, at each boundary."""
    compute_with(threads_of_worker())
    device = training_device()
    network = folded_backbone(context, backbone, device)
    table = open_table(context.table, torch.device("cpu"))
    kept = build_view(
        network,
        ImageRows(table, torch.from_numpy(rows.copy())),
        context.image_size,
        view_magnitude(view, n_views),
        context.flip,
        stage_outputs,
        seed,
        device,
    )
    return [kept[stage_output] for stage_output in stage_outputs]


def resolve_config(params: Mapping[str, Value]) -> TrialConfig:
    """Read a trial's parameters; a network that has no pretrained weights is never frozen."""
    config = TrialConfig.from_params(params)
    return replace(config, freeze_depth=0) if config.backbone == "cnn" else config


def training_device() -> torch.device:
    """Return the GPU that Ray gave this worker, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def threads_of_worker() -> int:
    """Return how many CPUs Ray gave this worker, at least one."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def create_trainer(
    context: TrainingContext,
    config: TrialConfig,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    seed: int,
    **options: Any,
) -> Trainer:
    """Set up a training on this worker; options go to `Trainer`."""
    device = training_device()
    return Trainer(
        config,
        clone_backbone(context, config.backbone, config.freeze_depth, device),
        context.images(device),
        train_rows,
        val_rows,
        seed=seed,
        cache=context.cache(config),
        **options,
    )
