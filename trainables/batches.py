"""Provide a training's input batches: from images, or from cached features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainables.augmentation import augment_pixels, draw_magnitudes
from trainables.compute import mixed_precision
from trainables.feature_cache import FeatureCache
from trainables.images import crop_pixels
from trainables.models.backbones import Backbone


@dataclass(frozen=True)
class ImageSet:
    """Decoded images with their labels.

    Attributes:
        table: uint8 [N, S, S, 3], on the GPU if it fits; it is shared and must not be written to.
        labels: int64 [N].
        n_classes: Labels are in [0, n_classes).
        image_size: Side in pixels that a backbone sees.
        flip: Whether images may be mirrored.
    """

    table: Tensor
    labels: Tensor
    n_classes: int
    image_size: int
    flip: bool

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return some images on a device: uint8 [n, S, S, 3]."""
        batch = self.table[rows.to(self.table.device)]
        if device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True)


class Batches(Protocol):
    """Inputs of the trained part of a network: the output of its frozen stages, or pixels."""

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented inputs for images, given by their rows in the image table."""

    def clean(self, rows: Tensor) -> Tensor:
        """Return inputs without augmentation."""


class CachedBatches:
    """Inputs from a feature cache."""

    def __init__(self, cache: FeatureCache, augment: float) -> None:
        self._cache = cache
        self._augment = augment

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random augmented view of each image."""
        return self._cache.draw(rows, self._augment, generator)

    def clean(self, rows: Tensor) -> Tensor:
        """Return the view without augmentation."""
        return self._cache.clean(rows)


class ImageBatches:
    """Inputs computed from the images: augmented, then run through the frozen stages."""

    def __init__(self, images: ImageSet, backbone: Backbone, augment: float) -> None:
        self._images = images
        self._backbone = backbone
        self._augment = augment
        self._device = next(backbone.parameters()).device
        self._generator = torch.Generator(self._device)

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the frozen stages' output for newly augmented images."""
        seed = int(torch.randint(2**62, (1,), generator=generator))
        self._generator.manual_seed(seed)
        batch = self._images.take(rows, self._device)
        magnitudes = draw_magnitudes(len(rows), self._augment, self._generator)
        size, flip = self._images.image_size, self._images.flip
        pixels = augment_pixels(batch, size, magnitudes, flip, self._generator)
        return self._run_frozen_stages(pixels)

    def clean(self, rows: Tensor) -> Tensor:
        """Return the frozen stages' output for images without augmentation."""
        batch = self._images.take(rows, self._device)
        return self._run_frozen_stages(crop_pixels(batch, self._images.image_size))

    @torch.no_grad()
    def _run_frozen_stages(self, pixels: Tensor) -> Tensor:
        depth = self._backbone.freeze_depth
        if depth == 0:
            return pixels
        with mixed_precision(self._device):
            features: Tensor = self._backbone(pixels, 0, depth)
        return features
