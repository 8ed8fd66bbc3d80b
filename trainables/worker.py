"""Set up trainings in a worker process: open images, share backbones, find cached features.

What all workers of a run read lies in shared memory or in files. This module knows neither Ray nor
where that is: whoever starts the workers implements the protocols below.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from spaces.base import TrialConfig
from spaces.rules import Metric, Value
from trainables.batches import ImageSet
from trainables.feature_cache import FeatureCache, build_view, view_magnitude
from trainables.images import ImageRows, as_tensor
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.batchnorm_folding import fold_batchnorm
from trainables.models.classifier import Weights
from trainables.models.own_networks import register_module
from trainables.recent_backbones import RecentBackbones
from trainables.trainer import Trainer

GPU_TABLE_FRACTION = 0.2
"""Fraction of a GPU's free memory that decoded images may take; larger tables stay on the CPU."""


class SharedArray(Protocol):
    """A NumPy array that all workers of a run read; hashable, and small when pickled."""

    def open(self) -> np.ndarray:
        """Return the array, mapped or in shared memory; it must not be written to."""


class SharedWeights(Protocol):
    """A state dict that all workers of a run read; hashable, and small when pickled."""

    def open(self) -> Weights:
        """Return the state dict."""


class FeatureSource(Protocol):
    """Hands out cached features of frozen backbone stages."""

    def get_views(self, backbone: str, stage_output: int, augment: float) -> FeatureCache | None:
        """Return the views that a training may draw.

        Args:
            backbone: Name of the backbone.
            stage_output: Number of frozen stages, 1 to 5.
            augment: Strength of the augmentation, in [0, 1].

        Returns:
            The views; None where the training is to compute its features itself.
        """


class TrialCheckpoints(Protocol):
    """Stores the weights of the best trials, and the checkpoints of running ones."""

    def would_keep(self, number: int, score: tuple[float, float]) -> bool:
        """Return whether the weights of a trial with this score would be kept."""

    def submit(self, number: int, score: tuple[float, float], content: bytes) -> None:
        """Submit a trial's weights; they are kept while the trial is among the best."""

    def save(self, number: int, content: bytes) -> None:
        """Replace a running trial's checkpoint."""

    def load_last(self, number: int) -> bytes | None:
        """Return a trial's last checkpoint; None where there is none."""


@dataclass(frozen=True)
class FeatureContext:
    """Images and pretrained backbones: what computing features needs.

    Attributes:
        table: The decoded images, uint8 [N, S, S, 3].
        image_size: Side in pixels that a backbone sees.
        flip: Whether images may be mirrored.
        weights: By backbone, its pretrained state dict; one that is missing starts from scratch.
        seed: Seed of the run.
        modules: By name, the source texts of modules that build backbones of the user's own.
    """

    table: SharedArray
    image_size: int
    flip: bool
    weights: Mapping[str, SharedWeights]
    seed: int
    modules: Mapping[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class TrainingContext(FeatureContext):
    """What all trainings of a run have in common.

    Attributes:
        labels: int64 [N].
        n_classes: Labels are in [0, n_classes).
        epochs: The full length of a trial.
        patience, metric: See `Space`.
        heads: By backbone, the linear probe's head, which trainings may begin with.
        feature_source: Source of cached features; None computes all features as they are needed.
        groups: int64 [N]; images of equal numbers are near-duplicates, and stay in one fold.
            None puts each image in a group of its own.
        run_id: Identifies the run.
    """

    labels: np.ndarray
    n_classes: int
    epochs: int
    patience: int | None
    heads: Mapping[str, Weights]
    feature_source: FeatureSource | None
    groups: np.ndarray | None = None
    run_id: str = ""
    metric: Metric = "accuracy"

    def images(self, device: torch.device) -> ImageSet:
        """Open the images with their labels; see `open_table`."""
        return ImageSet(
            table=open_table(self.table, device),
            labels=as_tensor(self.labels),
            n_classes=self.n_classes,
            image_size=self.image_size,
            flip=self.flip,
        )

    def cached_features(self, config: TrialConfig) -> FeatureCache | None:
        """Return the cached features that a configuration trains on; None where there are none."""
        if self.feature_source is None or config.freeze_depth == 0:
            return None
        return self.feature_source.get_views(config.backbone, config.freeze_depth, config.augment)

    def pooled_features(self, backbone: str) -> FeatureCache | None:
        """Return a backbone's cached pooled features of images without augmentation, or None."""
        if self.feature_source is None:
            return None
        return self.feature_source.get_views(backbone, 5, 0.0)


_tables: dict[tuple[SharedArray, torch.device], torch.Tensor] = {}


def open_table(table: SharedArray, device: torch.device) -> torch.Tensor:
    """Open the decoded images: without a copy on the CPU, with one copy per worker on a GPU.

    Args:
        table: uint8 [N, S, S, 3].
        device: Where they are needed. They stay on the CPU if they take more than
            `GPU_TABLE_FRACTION` of the GPU's free memory.
    """
    if device.type == "cpu":
        return as_tensor(table.open())
    if (table, device) not in _tables:
        array = table.open()
        free, _ = torch.cuda.mem_get_info(device)
        fits = array.nbytes <= GPU_TABLE_FRACTION * free
        _tables[table, device] = as_tensor(array).to(device if fits else "cpu")
    return _tables[table, device]


_BackboneKey = tuple[str, torch.device, SharedWeights | None, int, int]
"""Two runs in one worker may give backbones of the same name other weights, and other images."""

_backbones, _folded_backbones = RecentBackbones(), RecentBackbones()


def _backbone_key(context: FeatureContext, name: str, device: torch.device) -> _BackboneKey:
    return name, device, context.weights.get(name), context.seed, context.image_size


def clone_backbone(
    context: FeatureContext, name: str, depth: int, device: torch.device
) -> Backbone:
    """Return a backbone with its first `depth` stages shared in this worker, the others copied.

    A worker reads the weights of a backbone once, and keeps them for later trials.
    """

    def create() -> Backbone:
        for module, source in context.modules.items():
            register_module(module, source)
        weights = context.weights.get(name)
        state_dict = None if weights is None else weights.open()
        backbone = create_backbone(
            name, state_dict, seed=context.seed, image_size=context.image_size
        )
        return backbone.to(device).to(memory_format=torch.channels_last)

    original = _backbones.get(_backbone_key(context, name, device), create)
    shared = {id(stage): stage for stage in original.stages[:depth]}
    return copy.deepcopy(original, shared)


def folded_backbone(context: FeatureContext, name: str, device: torch.device) -> Backbone:
    """Return a pretrained backbone for inference, with its batch normalisation folded.

    A worker folds a backbone once, and keeps it.
    """
    return _folded_backbones.get(
        _backbone_key(context, name, device),
        lambda: fold_batchnorm(clone_backbone(context, name, 5, device)),
    )


def build_block(
    context: FeatureContext,
    backbone: str,
    rows: np.ndarray,
    view: int,
    n_views: int,
    stage_outputs: Sequence[int],
    seed: int,
) -> list[np.ndarray]:
    """Compute one view of some images at several stage outputs, in one pass.

    Args:
        context: Images and backbones.
        backbone: Name of the backbone.
        rows: int64 [n], the images' rows in the table.
        view: Number of the view, in [0, n_views).
        n_views: V, which sets the magnitude of the view's augmentation.
        stage_outputs: Ascending, each in 1 to 5.
        seed: Seed of the augmentation.

    Returns:
        By stage output, the bits of the features: int16 [n, *shape].
    """
    device = training_device()
    table = open_table(context.table, torch.device("cpu"))
    features = build_view(
        folded_backbone(context, backbone, device),
        ImageRows(table, torch.from_numpy(rows.copy())),
        context.image_size,
        view_magnitude(view, n_views),
        context.flip,
        stage_outputs,
        seed,
        device,
    )
    return [features[stage_output] for stage_output in stage_outputs]


def resolve_config(params: Mapping[str, Value]) -> TrialConfig:
    """Read a trial's parameters; a network without pretrained weights is never frozen."""
    config = TrialConfig.from_params(params)
    return replace(config, freeze_depth=0) if config.backbone == "cnn" else config


def training_device() -> torch.device:
    """Return the GPU if this worker sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def create_trainer(
    context: TrainingContext,
    config: TrialConfig,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    seed: int,
    epochs: int,
    patience: int | None = None,
    initial_head: Weights | None = None,
    epoch_lrs: Sequence[float] | None = None,
) -> Trainer:
    """Create a `Trainer` on this worker's device; see its arguments."""
    device = training_device()
    return Trainer(
        config,
        clone_backbone(context, config.backbone, config.freeze_depth, device),
        context.images(device),
        train_rows,
        val_rows,
        epochs=epochs,
        seed=seed,
        cache=context.cached_features(config),
        initial_head=initial_head,
        patience=patience,
        epoch_lrs=epoch_lrs,
        metric=context.metric,
    )
