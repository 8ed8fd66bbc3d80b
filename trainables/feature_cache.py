"""Cache the features of augmented images at the output of frozen backbone stages.

View v of V holds all images augmented at magnitude v / (V - 1); view 0 is not augmented. A trial of
augmentation strength `augment` draws, for each image and epoch, uniformly among the views of
magnitude up to `augment`, which samples m ~ U(0, augment). So one cache per backbone serves every
trial, and the frozen stages run once for all of them.

Features are bfloat16. NumPy and Ray's object store do not know that type, so blocks are stored as
int16 of the same bits, and `as_features` reinterprets them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.augmentation import augment_and_normalise
from trainables.compute import mixed_precision
from trainables.images import ImageRows, as_tensor
from trainables.models.backbones import Backbone

_BYTES_PER_VALUE = 2
_BUILD_BATCH_SIZE = 32


def view_magnitude(view: int, n_views: int) -> float:
    """Return the augmentation magnitude of a view: 0 for view 0, 1 for the last."""
    return view / (n_views - 1) if n_views > 1 else 0.0


def views_up_to(augment: float, n_views: int) -> int:
    """Count the views of magnitude at most `augment`, of which view 0 always is one."""
    return int(augment * (n_views - 1) + 1e-9) + 1


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
        x = augment_and_normalise(batch, image_size, magnitudes, flip, generator)
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
        """Return one view of each image, drawn at random from those of magnitude up to `augment`.

        Args:
            rows: int64 [n], the images' rows in the image table.
            augment: Augmentation strength, in [0, 1].
            generator: Source of the random draws, on the CPU.

        Returns:
            bfloat16 [n, *shape].
        """
        n_drawn = min(views_up_to(augment, self.n_views), len(self.views))
        if n_drawn == 1:
            return self.clean(rows)
        view_of = torch.randint(n_drawn, (len(rows),), generator=generator)
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
