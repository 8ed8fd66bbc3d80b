"""Where a training takes its batches from: packed images, or what lies at a frozen boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainables.augmentation import augment_and_normalise, draw_magnitudes
from trainables.feature_cache import FeatureCache, mixed_precision
from trainables.images import crop_and_normalise
from trainables.models.backbones import Backbone


@dataclass(frozen=True)
class ImageSet:
    """Packed images with their labels.

    Attributes:
        table: uint8 [N, S, S, 3], shared and never written to; on the GPU where it fits.
        labels: int64 [N].
        n_classes: Labels are in [0, n_classes).
        image_size: Side in pixels that a backbone sees.
        flip: Whether a mirrored image is still of its class.
    """

    table: Tensor
    labels: Tensor
    n_classes: int
    image_size: int
    flip: bool

    def take(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return images, given by their rows, on a device: uint8 [n, S, S, 3]."""
        batch = self.table[rows.to(self.table.device)]
        if device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True)


class Batches(Protocol):
    """Where a training takes its batches from: what lies at the frozen boundary."""

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the augmented inputs of images, given by their rows in the table."""

    def clean(self, rows: Tensor) -> Tensor:
        """Return their inputs without augmentation."""


class CachedBatches:
    """Inputs from the view bank: nothing is computed."""

    def __init__(self, cache: FeatureCache, augment: float) -> None:
        self._bank = cache
        self._augment = augment

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return a view of each image, drawn among those up to the strength."""
        return self._bank.draw(rows, self._augment, generator)

    def clean(self, rows: Tensor) -> Tensor:
        """Return view 0."""
        return self._bank.clean(rows)


class ImageBatches:
    """Inputs from the packed images: augmented, then run through the frozen stages."""

    def __init__(self, images: ImageSet, backbone: Backbone, augment: float) -> None:
        self._images = images
        self._backbone = backbone
        self._augment = augment
        self._device = next(backbone.parameters()).device
        self._generator = torch.Generator(self._device)

    def train(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the frozen stages make of freshly augmented images."""
        seed = int(torch.randint(2**62, (1,), generator=generator))
        self._generator.manual_seed(seed)
        batch = self._images.take(rows, self._device)
        magnitudes = draw_magnitudes(len(rows), self._augment, self._generator)
        size, flip = self._images.image_size, self._images.flip
        return self._frozen(augment_and_normalise(batch, size, magnitudes, flip, self._generator))

    def clean(self, rows: Tensor) -> Tensor:
        """Return what the frozen stages make of the images as they are."""
        batch = self._images.take(rows, self._device)
        return self._frozen(crop_and_normalise(batch, self._images.image_size))

    @torch.no_grad()
    def _frozen(self, pixels: Tensor) -> Tensor:
        depth = self._backbone.freeze_depth
        if depth == 0:
            return pixels
        with mixed_precision(self._device):
            features: Tensor = self._backbone(pixels, 0, depth)
        return features
