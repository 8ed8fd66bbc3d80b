"""A model for other programs: a module from images of any size to probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.images import MAX_SQUEEZED, ImageError
from trainables.models.export_module import ExportModule
from trainables.models.model import Model
from trainables.models.model_card import ModelCard

_MAX_ASPECT_RATIO = 64
"""Longer images are cropped to it before they are resized, which would else take gigabytes."""


class ImageClassifier(nn.Module):
    """A model with everything that it does to an image: resizing, normalisation, calibration.

    Gradients flow to float images, so that it can be explained or attacked as any module. Images
    are resized by `interpolate` and not by Pillow, whose results differ by a level or two of 255;
    one of the size that the backbone sees is taken as it is.

    Attributes:
        card: Describes the model.
        classes: Names of the classes, in the order of the probabilities.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.card: ModelCard = model.card
        self.classes = model.card.classes
        self._export_module = ExportModule(model)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of images.

        Args:
            images: [N, 3, H, W] or [3, H, W], RGB, uint8 in [0, 255] or floats in [0, 1].

        Returns:
            float32 [N, classes]; rows sum to 1.

        Raises:
            ImageError: the tensor is of another shape or type.
        """
        pixels = _as_pixels(images)
        squares = resize_to_square(pixels, self.card)
        outputs: tuple[Tensor, ...] = self._export_module(squares.permute(0, 2, 3, 1))
        return outputs[0]


def resize_to_square(pixels: Tensor, card: ModelCard) -> Tensor:
    """Make images square as `trainables.images.to_square` does, cut to what the backbone sees.

    Args:
        pixels: float [N, 3, H, W].
        card: Its `image_size`, `cache_size` and `resize_mode` apply.

    Returns:
        float [N, 3, S, S] with S the card's `image_size`; the images themselves if they are so.
    """
    side = card.image_size
    height, width = pixels.shape[2:]
    if (height, width) == (side, side):
        return pixels
    if card.resize_mode == "pad":
        longer = max(height, width)
        h, w = (max(1, round(side * min(1.0, MAX_SQUEEZED * n / longer))) for n in (height, width))
        top, left = (side - h) // 2, (side - w) // 2
        resized = _interpolate(pixels, h, w)
        return F.pad(resized, (left, side - left - w, top, side - top - h), mode="replicate")
    shorter = min(height, width)
    longest = shorter * _MAX_ASPECT_RATIO
    pixels = _center_crop(pixels, min(height, longest), min(width, longest))
    h, w = (int(card.cache_size * n / shorter) for n in pixels.shape[2:])
    return _center_crop(_interpolate(pixels, h, w), side, side)


def _as_pixels(images: Tensor) -> Tensor:
    """Return images as floats in [0, 255], [N, 3, H, W]."""
    if not isinstance(images, Tensor):
        raise ImageError("the images", f"must be a tensor, but are of {type(images).__name__}")
    shape = list(images.shape)
    if images.ndim not in (3, 4) or shape[-3] != 3 or 0 in shape[-2:]:
        hint = "; permute puts channels first" if shape[-1:] == [3] else ""
        raise ImageError(
            "the images", f"must be of shape [N, 3, H, W] or [3, H, W], but are of {shape}{hint}"
        )
    batch = images if images.ndim == 4 else images[None]
    if batch.dtype == torch.uint8:
        return batch.float()
    if not batch.is_floating_point():
        raise ImageError(
            "the images", f"must be of uint8 or of floats in [0, 1], but are of {batch.dtype}"
        )
    return batch.float() * 255


def _interpolate(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)


def _center_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    """Cut out the middle, with torchvision's rounding."""
    top, left = (round((n - m) / 2) for n, m in zip(pixels.shape[2:], (height, width), strict=True))
    return pixels[:, :, top : top + height, left : left + width]
