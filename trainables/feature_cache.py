"""The view bank: what frozen stages make of each image, computed once for all trials.

View v of V is the images augmented at magnitude v / (V - 1); view 0 is clean. A trial of strength
`augment` draws, for each image at each visit, uniformly among the views of magnitude up to
`augment`: m ~ U(0, augment), sampled. So one bank a backbone serves every trial.

Features are bfloat16. NumPy and the object store do not know that type, so a bank keeps the bits as
int16 and `as_features` reads them as what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.augmentation import augment_and_normalise
from trainables.images import ImageRows, as_tensor
from trainables.models.backbones import Backbone

_BYTES_PER_VALUE = 2
_BUILD_BATCH = 32


def view_magnitude(view: int, n_views: int) -> float:
    """Return the magnitude of a view: 0 for view 0, up to 1 for the last."""
    return view / (n_views - 1) if n_views > 1 else 0.0


def views_up_to(augment: float, n_views: int) -> int:
    """Count the views whose magnitude is at most `augment`; view 0 always is."""
    return int(augment * (n_views - 1) + 1e-9) + 1


def bytes_per_image(backbone: Backbone, image_size: int) -> tuple[int, ...]:
    """Return the bytes that one view of one image takes at boundaries 1 to 5."""
    shapes = backbone.stage_output_shapes(image_size)
    return tuple(int(np.prod(shape)) * _BYTES_PER_VALUE for shape in shapes)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return the autocast of one step: bfloat16 where the processor has it, else float16 on CUDA.

    Enter it afresh for every step: it keeps bfloat16 copies of the weights while it is open.
    """
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=dtype)
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16)


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
    """Run images through the frozen stages once, keeping each boundary asked for.

    Args:
        backbone: In eval mode, on `device`, channels_last.
        images: uint8 [N, S, S, 3] on the CPU.
        image_size: Side in pixels that the backbone sees.
        magnitude: Of the augmentation, in [0, 1].
        flip: Whether images may be mirrored.
        stage_outputs: Ascending, each in 1 to 5.
        seed: Of the augmentation.
        device: Where to compute.

    Returns:
        By boundary, the features' bits: int16 [N, *shape], maps with their channels last.
    """
    generator = torch.Generator(device).manual_seed(seed)
    kept: dict[int, np.ndarray] = {}
    for start in range(0, len(images), _BUILD_BATCH):
        batch = images[start : start + _BUILD_BATCH].to(device)
        magnitudes = torch.full((len(batch),), magnitude, device=device)
        x = augment_and_normalise(batch, image_size, magnitudes, flip, generator)
        done = 0
        for stage_output in stage_outputs:
            with mixed_precision(device):
                x = backbone(x, done, stage_output)
            done = stage_output
            bits = _channels_last(x.to(torch.bfloat16)).contiguous().view(torch.int16).cpu().numpy()
            if stage_output not in kept:
                kept[stage_output] = np.empty((len(images), *bits.shape[1:]), np.int16)
            kept[stage_output][start : start + len(batch)] = bits
    return kept


def as_features(bits: np.ndarray) -> Tensor:
    """Read a bank's bits as bfloat16 features, without a copy; maps keep their channels last."""
    return as_tensor(bits).view(torch.bfloat16)


def _channels_last(x: Tensor) -> Tensor:
    """Lay maps out as a bank keeps them; in channels_last memory that moves nothing."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _channels_first(x: Tensor) -> Tensor:
    """Give maps back the order of dimensions that a network expects."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


@dataclass(frozen=True)
class FeatureCache:
    """All views of the images at one boundary of one backbone.

    Attributes:
        views: Each view's blocks of `block_size` images, in order: bfloat16 [n, *shape], maps
            with their channels last. Later views may be missing where no trial may draw them.
        n_views: V, which sets what magnitude a view has.
        row_of: Where each image of the table lies in a view; -1 for images that are not in
            the bank: int64 [N].
        block_size: Images in every block but the last.
    """

    views: tuple[tuple[Tensor, ...], ...]
    n_views: int
    row_of: Tensor
    block_size: int

    def clean(self, images: Tensor) -> Tensor:
        """Return view 0 of images, given by their rows in the table: bfloat16 [n, *shape]."""
        return self._gather(self.row_of[images], torch.zeros_like(images))

    def draw(self, images: Tensor, augment: float, generator: torch.Generator) -> Tensor:
        """Return one view of each image, drawn among those of magnitude up to `augment`.

        Args:
            images: int64 [n], rows of the table.
            augment: Strength in [0, 1].
            generator: Random numbers, on the CPU.

        Returns:
            bfloat16 [n, *shape].
        """
        n_drawn = min(views_up_to(augment, self.n_views), len(self.views))
        if n_drawn == 1:
            return self.clean(images)
        view_of = torch.randint(n_drawn, (len(images),), generator=generator)
        return self._gather(self.row_of[images], view_of)

    def _gather(self, rows: Tensor, view_of: Tensor) -> Tensor:
        """Copy each row from its view, a block at a time."""
        if len(rows) and int(rows.min()) < 0:
            raise ValueError("an image was asked for that is not in the bank")
        shape = self.views[0][0].shape[1:]
        gathered = torch.empty((len(rows), *shape), dtype=torch.bfloat16)
        n_blocks = len(self.views[0])
        block_of = view_of * n_blocks + rows // self.block_size
        order = torch.argsort(block_of, stable=True)
        blocks, counts = torch.unique_consecutive(block_of[order], return_counts=True)
        for block, places in zip(blocks.tolist(), order.split(counts.tolist()), strict=True):
            view, part = divmod(block, n_blocks)
            gathered[places] = self.views[view][part][rows[places] % self.block_size]
        return _channels_first(gathered)
