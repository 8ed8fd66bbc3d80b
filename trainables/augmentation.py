"""Batched augmentation with one knob.

A magnitude m in [0, 1] scales every operation together. All geometry is one affine map and so one
resampling; all colour is one 3×3 matrix and offset an image. Both run on whole batches, on the
device the images are on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.images import MEAN, STD, crop_and_normalise

# The reach of each operation at magnitude 1.
MIN_CROP_AREA = 0.35
MAX_LOG_ASPECT = math.log(4 / 3)
MAX_SHIFT = 0.15  # of the image's side
MAX_LOG_ZOOM = math.log(1.25)
MAX_ROTATION = math.radians(30)
MAX_SHEAR = math.radians(15)
MAX_COLOUR_CHANGE = 0.5  # brightness, contrast and saturation: factors in 1 ± 0.5
MAX_HUE_TURN = math.radians(36)
ERASE_PROBABILITY = 0.5
MAX_ERASED_AREA = 0.2

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def draw_magnitudes(n: int, augment: float, generator: torch.Generator) -> Tensor:
    """Draw m ~ U(0, augment) for n images: float [n], on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device) * augment


def augment_and_normalise(
    images: Tensor,
    image_size: int,
    magnitudes: Tensor,
    flip: bool,
    generator: torch.Generator,
) -> Tensor:
    """Augment packed images, each at its own magnitude, and normalise them.

    Args:
        images: uint8 [N, S, S, 3], S >= image_size.
        image_size: Side in pixels of what comes out.
        magnitudes: float [N] in [0, 1], on the images' device. Where all are 0 the result is
            exactly that of `crop_and_normalise`.
        flip: Whether images may be mirrored.
        generator: Random numbers, on the images' device.

    Returns:
        float32 [N, 3, image_size, image_size], channels_last.
    """
    if not magnitudes.any():
        return crop_and_normalise(images, image_size)
    cache_size = images.shape[1]
    grid_map = _affine_maps(magnitudes, flip, generator) * (image_size / cache_size)
    size = [len(images), 3, image_size, image_size]
    grid = F.affine_grid(grid_map, size, align_corners=False)
    pixels = images.permute(0, 3, 1, 2).float()
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = _change_colours(pixels, magnitudes, generator)
    _erase(pixels, magnitudes, generator)
    return pixels.contiguous(memory_format=torch.channels_last)


def _spread(magnitudes: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Draw from U(-m·reach, m·reach) an image."""
    return (_uniform(magnitudes, generator) * 2 - 1) * magnitudes * reach


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


def _affine_maps(magnitudes: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Draw the map from each output's coordinates to its input's, both in [-1, 1]: [N, 2, 3]."""
    angle = _spread(magnitudes, MAX_ROTATION, generator)
    shear = torch.tan(_spread(magnitudes, MAX_SHEAR, generator))
    # 1. Random resized crop: a window of some area and aspect, anywhere inside the image.
    area = 1 - _uniform(magnitudes, generator) * magnitudes * (1 - MIN_CROP_AREA)
    aspect = torch.exp(_spread(magnitudes, MAX_LOG_ASPECT / 2, generator))
    width = (area.sqrt() * aspect).clamp(max=1)
    height = (area.sqrt() / aspect).clamp(max=1)
    crop_x = (_uniform(magnitudes, generator) * 2 - 1) * (1 - width)
    crop_y = (_uniform(magnitudes, generator) * 2 - 1) * (1 - height)
    # 2. Zoom and shift may reach beyond the image's edge.
    zoom = torch.exp(_spread(magnitudes, MAX_LOG_ZOOM, generator))
    shift_x = _spread(magnitudes, 2 * MAX_SHIFT, generator)
    shift_y = _spread(magnitudes, 2 * MAX_SHIFT, generator)
    # 3. Mirrored with probability min(2m, 1/2): small magnitudes profit from it already.
    synced = _uniform(magnitudes, generator) < (2 * magnitudes).clamp(max=0.5)
    side = torch.where(synced & flip, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    scale_x, scale_y = width * zoom, height * zoom
    row_x = torch.stack([cos * scale_x * side, (cos * shear - sin) * scale_y, crop_x + shift_x], 1)
    row_y = torch.stack([sin * scale_x * side, (sin * shear + cos) * scale_y, crop_y + shift_y], 1)
    return torch.stack([row_x, row_y], 1)


def _change_colours(pixels: Tensor, magnitudes: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, and normalise, of pixels in [0, 255].

    Each of the four is linear in RGB and leaves the grey axis where it is, so all of them are one
    matrix and one offset along that axis.
    """
    n, _, height, width = pixels.shape
    flat = pixels.reshape(n, 3, height * width)
    luma = torch.tensor(_LUMA, device=pixels.device)
    brightness, contrast, saturation = (
        1 + _spread(magnitudes, MAX_COLOUR_CHANGE, generator) for _ in range(3)
    )
    turn = _spread(magnitudes, MAX_HUE_TURN, generator)
    mean_grey = flat.mean(dim=2) @ luma
    eye = torch.eye(3, device=pixels.device)
    saturate = saturation.view(-1, 1, 1) * eye + (1 - saturation).view(-1, 1, 1) * luma.expand(3, 3)
    matrix = _hue_matrices(turn) @ saturate * (brightness * contrast).view(-1, 1, 1)
    offset = (brightness * (1 - contrast) * mean_grey).view(-1, 1, 1).expand(n, 3, 1)
    flat = torch.baddbmm(offset, matrix, flat).clamp_(0, 255)
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1) * 255
    std = torch.tensor(STD, device=pixels.device).view(3, 1) * 255
    return flat.sub_(mean).div_(std).view(n, 3, height, width)


def _hue_matrices(turn: Tensor) -> Tensor:
    """Rotate RGB around the grey axis by `turn` radians (Rodrigues' formula): [N, 3, 3]."""
    third = 1 / 3
    cos, sin = torch.cos(turn).view(-1, 1, 1), torch.sin(turn).view(-1, 1, 1)
    eye = torch.eye(3, device=turn.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=turn.device)
    return cos * eye + (1 - cos) * third + sin * math.sqrt(third) * cross


def _erase(pixels: Tensor, magnitudes: Tensor, generator: torch.Generator) -> None:
    """Set a random rectangle of some images to the mean colour, in place (arXiv 1708.04896)."""
    height, width = pixels.shape[-2:]
    chosen = _uniform(magnitudes, generator) < ERASE_PROBABILITY * magnitudes
    area = _uniform(magnitudes, generator) * magnitudes * MAX_ERASED_AREA
    aspect = torch.exp((_uniform(magnitudes, generator) * 2 - 1) * MAX_LOG_ASPECT)
    half_x, half_y = (area * aspect).sqrt() / 2, (area / aspect).sqrt() / 2
    centre_x, centre_y = _uniform(magnitudes, generator), _uniform(magnitudes, generator)
    at_x = (torch.arange(width, device=pixels.device) + 0.5) / width
    at_y = (torch.arange(height, device=pixels.device) + 0.5) / height
    inside_x = (at_x - centre_x[:, None]).abs() < (half_x * chosen)[:, None]
    inside_y = (at_y - centre_y[:, None]).abs() < (half_y * chosen)[:, None]
    pixels.masked_fill_((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0.0)
