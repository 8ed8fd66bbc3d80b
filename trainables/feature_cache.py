"""Cache the features of augmented images at the output of frozen backbone stages.

View 0 holds the images without augmentation, view v of V holds them augmented at the magnitude
`view_magnitude(v, V)`. A training draws one view per image and epoch, with the probabilities of
`view_probabilities`: like those of trainings that augment each image again, U(0, augment), the
magnitudes have the mean augment / 2, within 0.004 from augment 0.05 on, and none is 0. With fewer
than 49 views a strength below 1/49 acts as 1/49; with two views the mean holds, but view 0 is drawn
with probability 1 - augment / 2. So one cache per backbone serves every trial, and the frozen
stages run once for all of them.

Features are bfloat16. NumPy and Ray's object store do not know that type, so blocks are stored as
int16 of the same bits, and `as_features` reinterprets them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.augmentation import augment_pixels
from trainables.compute import mixed_precision
from trainables.images import ImageRows, as_tensor
from trainables.models.backbones import Backbone

_BYTES_PER_VALUE = 2
_BUILD_BATCH_SIZE = 32
_FIRST_MAGNITUDE = 1 / 49
"""The largest magnitude of view 1: a shift of 0.3% of the side, a rotation by 0.6 degrees."""


def view_magnitude(view: int, n_views: int) -> float:
    """Return the augmentation magnitude of a view: 0 for view 0, 1 for the last.

    Magnitudes grow as (view / (V - 1))², so that small strengths have several views, too. With
    fewer than 8 views the power is higher, so that view 1 has the magnitude 1/49 all the same: it
    stands for all smaller ones.
    """
    if view in (0, n_views - 1):
        return float(view > 0)
    power = max(2.0, math.log(1 / _FIRST_MAGNITUDE) / math.log(n_views - 1))
    return float((view / (n_views - 1)) ** power)


@functools.cache
def view_probabilities(augment: float, n_views: int) -> tuple[float, ...]:
    """Return the probabilities with which a training draws each view.

    A magnitude m ~ U(0, augment) falls between those of two views; the nearer it is to one, the
    more probable is that view (linear interpolation), so that the mean stays m. Integrated over m.
    Below the magnitude of view 1, that view is drawn instead of view 0; with two views, whose
    magnitudes are 0 and 1, both are drawn, since otherwise every strength would be 1.

    Args:
        augment: Augmentation strength, in [0, 1].
        n_views: V, at least 1.

    Returns:
        From view 0 to the last that is drawn: the first whose magnitude is at least `augment`.
    """
    if augment == 0 or n_views == 1:
        return (1.0,)
    probabilities = [0.0]
    for view in range(1, n_views):
        low, high = view_magnitude(view - 1, n_views), view_magnitude(view, n_views)
        width = (min(high, augment) - low) / augment
        to_high = width * (min(high, augment) - low) / (high - low) / 2
        probabilities[-1] += width - to_high
        probabilities.append(to_high)
        if high >= augment:
            break
    if n_views > 2:
        probabilities[1] += probabilities[0]
        probabilities[0] = 0.0
    return tuple(probabilities)


def count_views(augment: float, n_views: int) -> int:
    """Count the views that a training of this strength needs, of which view 0 always is one."""
    return len(view_probabilities(augment, n_views))


def bytes_per_image(backbone: Backbone, image_size: int) -> tuple[int, ...]:
    """Return the bytes of one view of one image at the output of each of the five stages."""
    shapes = backbone.stage_output_shapes(image_size)
    return tuple(int(np.prod(shape)) * _BYTES_PER_VALUE for shape in shapes)


@torch.no_grad()
def build_view(
    backbone: Backbone,
    images: Tensor | ImageRows,
    image_size: int,
    magnitude: float,
    flip: bool,
    stage_outputs: Sequence[int],
    seed: int,
    device: torch.device,
) -> dict[int, np.ndarray]:
    """Compute one view of some images at the output of several stages, in one pass.

    Args:
        backbone: In eval mode, on `device`, channels_last.
        images: uint8 [N, S, S, 3] on the CPU.
        image_size: Side in pixels that the backbone sees.
        magnitude: Magnitude of the augmentation, in [0, 1].
        flip: Whether images may be mirrored.
        stage_outputs: The stages whose output to compute, ascending, each in 1 to 5.
        seed: Seed of the augmentation.
        device: Where to compute.

    Returns:
        By stage, the bits of its output: int16 [N, *shape], feature maps with their channels last.
    """
    generator = torch.Generator(device).manual_seed(seed)
    views: dict[int, np.ndarray] = {}
    for start in range(0, len(images), _BUILD_BATCH_SIZE):
        batch = images[start : start + _BUILD_BATCH_SIZE].to(device)
        magnitudes = torch.full((len(batch),), magnitude, device=device)
        x = augment_pixels(batch, image_size, magnitudes, flip, generator)
        for done, stage in itertools.pairwise((0, *stage_outputs)):
            with mixed_precision(device):
                x = backbone(x, done, stage)
            bits = _channels_last(x.to(torch.bfloat16)).contiguous().view(torch.int16).cpu().numpy()
            if stage not in views:
                views[stage] = np.empty((len(images), *bits.shape[1:]), np.int16)
            views[stage][start : start + len(batch)] = bits
    return views


def as_features(bits: np.ndarray) -> Tensor:
    """Reinterpret int16 bits as bfloat16 features, without a copy and in the same layout."""
    return as_tensor(bits).view(torch.bfloat16)


def _channels_last(x: Tensor) -> Tensor:
    """Move a feature map's channels last, as the cache stores it."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _channels_first(x: Tensor) -> Tensor:
    """Move a feature map's channels to where a network expects them."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


@dataclass(frozen=True)
class FeatureCache:
    """The cached views of images at the output of one stage of one backbone.

    Attributes:
        views: Each view's blocks of `block_size` images, in order: bfloat16 [n, *shape], feature
            maps with their channels last. Later views may be missing if they are never drawn.
        n_views: V, which determines the magnitude of each view.
        row_of: int64 [N], each image's row in a view, by its row in the image table; -1 if it is
            not cached.
        block_size: Images per block, but for the last one.
    """

    views: tuple[tuple[Tensor, ...], ...]
    n_views: int
    row_of: Tensor
    block_size: int

    def clean(self, rows: Tensor) -> Tensor:
        """Return view 0 of images, given by their rows in the image table: bfloat16 [n, *shape]."""
        return self._gather(self.row_of[rows], torch.zeros_like(rows))

    def draw(self, rows: Tensor, augment: float, generator: torch.Generator) -> Tensor:
        """Return one view of each image, drawn with the probabilities of `view_probabilities`.

        Args:
            rows: int64 [n], the images' rows in the image table.
            augment: Augmentation strength, in [0, 1].
            generator: Source of the random draws, on the CPU.

        Returns:
            bfloat16 [n, *shape].

        Raises:
            ValueError: a view that may be drawn is missing.
        """
        probabilities = view_probabilities(augment, self.n_views)
        if len(probabilities) > len(self.views):
            raise ValueError(
                f"augment={augment} needs {len(probabilities)} views, but got {len(self.views)}"
            )
        bounds = torch.tensor(probabilities[:-1]).cumsum(0)
        view_of = torch.bucketize(torch.rand(len(rows), generator=generator), bounds, right=True)
        return self._gather(self.row_of[rows], view_of)

    def _gather(self, rows: Tensor, view_of: Tensor) -> Tensor:
        """Copy each row from its view, block by block."""
        if len(rows) and int(rows.min()) < 0:
            raise ValueError("an image is not in the feature cache")
        shape = self.views[0][0].shape[1:]
        gathered = torch.empty((len(rows), *shape), dtype=torch.bfloat16)
        n_blocks = len(self.views[0])
        block_of = view_of * n_blocks + rows // self.block_size
        order = torch.argsort(block_of, stable=True)
        blocks, counts = torch.unique_consecutive(block_of[order], return_counts=True)
        for block, positions in zip(blocks.tolist(), order.split(counts.tolist()), strict=True):
            view, part = divmod(block, n_blocks)
            gathered[positions] = self.views[view][part][rows[positions] % self.block_size]
        return _channels_first(gathered)
