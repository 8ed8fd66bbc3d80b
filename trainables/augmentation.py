"""Augment batches of images on their own device, at one magnitude per image.

A magnitude m in [0, 1] scales the ranges of all operations. The geometric ones form a single affine
map, so that pixels are resampled once; the colour ones form a single 3 × 3 matrix and offset.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.images import MEAN, crop_pixels

# The range of each operation at magnitude 1.
MIN_CROP_AREA = 0.35
MAX_LOG_ASPECT = math.log(4 / 3)
MAX_SHIFT = 0.15  # as a fraction of the side
MAX_LOG_ZOOM = math.log(1.25)
MAX_ROTATION = math.radians(30)
MAX_SHEAR = math.radians(15)
MAX_COLOUR_CHANGE = 0.5  # brightness, contrast and saturation have factors in 1 ± 0.5
MAX_HUE_TURN = math.radians(36)
ERASE_PROBABILITY = 0.5
MAX_ERASED_AREA = 0.2

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def draw_magnitudes(n: int, augment: float, generator: torch.Generator) -> Tensor:
    """Draw m ~ U(0, augment) for n images: float [n], on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device) * augment


def augment_pixels(
    images: Tensor,
    image_size: int,
    magnitudes: Tensor,
    flip: bool,
    generator: torch.Generator,
) -> Tensor:
    """Augment images, each at its own magnitude, for a backbone, which normalises them.

    Args:
        images: uint8 [N, S, S, 3], S >= image_size.
        image_size: Side in pixels of the result.
        magnitudes: float [N] in [0, 1], on the images' device. If all are 0, the result equals
            that of `crop_pixels`.
        flip: Whether images may be mirrored.
        generator: Source of the random draws, on the images' device.

    Returns:
        float32 [N, 3, image_size, image_size] in [0, 1], channels_last.
    """
    if not magnitudes.any():
        return crop_pixels(images, image_size)
    cache_size = images.shape[1]
    grid_map = _affine_maps(magnitudes, flip, generator) * (image_size / cache_size)
    size = [len(images), 3, image_size, image_size]
    grid = F.affine_grid(grid_map, size, align_corners=False)
    pixels = images.permute(0, 3, 1, 2).float()
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (
        1 + _symmetric(magnitudes, MAX_COLOUR_CHANGE, generator) for _ in range(3)
    )
    turn = _symmetric(magnitudes, MAX_HUE_TURN, generator)
    pixels = change_colours(pixels, brightness, contrast, saturation, turn)
    pixels = erase(pixels, magnitudes, generator)
    return pixels.contiguous(memory_format=torch.channels_last)


def _symmetric(magnitudes: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """Draw from U(-m·limit, m·limit) for each image."""
    return (_uniform(magnitudes, generator) * 2 - 1) * magnitudes * limit


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


def _affine_maps(magnitudes: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Draw the affine maps from output to input coordinates, both in [-1, 1]: [N, 2, 3]."""
    angle = _symmetric(magnitudes, MAX_ROTATION, generator)
    shear = torch.tan(_symmetric(magnitudes, MAX_SHEAR, generator))
    # 1. Random resized crop: a window of random area, aspect ratio and position.
    area = 1 - _uniform(magnitudes, generator) * magnitudes * (1 - MIN_CROP_AREA)
    aspect = torch.exp(_symmetric(magnitudes, MAX_LOG_ASPECT / 2, generator))
    width = (area.sqrt() * aspect).clamp(max=1)
    height = (area.sqrt() / aspect).clamp(max=1)
    crop_x = (_uniform(magnitudes, generator) * 2 - 1) * (1 - width)
    crop_y = (_uniform(magnitudes, generator) * 2 - 1) * (1 - height)
    # 2. Zoom and shift, which may reach beyond the image.
    zoom = torch.exp(_symmetric(magnitudes, MAX_LOG_ZOOM, generator))
    shift_x = _symmetric(magnitudes, 2 * MAX_SHIFT, generator)
    shift_y = _symmetric(magnitudes, 2 * MAX_SHIFT, generator)
    # 3. Flip, with probability min(2m, 1/2): it helps at small magnitudes, too.
    mirrored = _uniform(magnitudes, generator) < (2 * magnitudes).clamp(max=0.5)
    side = torch.where(mirrored & flip, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    scale_x, scale_y = width * zoom, height * zoom
    row_x = torch.stack([cos * scale_x * side, (cos * shear - sin) * scale_y, crop_x + shift_x], 1)
    row_y = torch.stack([sin * scale_x * side, (sin * shear + cos) * scale_y, crop_y + shift_y], 1)
    return torch.stack([row_x, row_y], 1)


def change_colours(
    pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, turn: Tensor
) -> Tensor:
    """Change brightness, contrast, saturation and hue.

    Each of the four is linear in RGB and maps gray to gray, so together they are one matrix and an
    offset along the gray axis.

    Args:
        pixels: [N, 3, H, W] in [0, 255].
        brightness: [N], a factor.
        contrast: [N], a factor.
        saturation: [N], a factor.
        turn: [N], the rotation of the hue in radians.

    Returns:
        [N, 3, H, W] in [0, 1].
    """
    n, _, height, width = pixels.shape
    flat = pixels.reshape(n, 3, height * width)
    luma = torch.tensor(LUMA, device=pixels.device)
    mean_gray = flat.mean(dim=2) @ luma
    eye = torch.eye(3, device=pixels.device)
    saturate = saturation.view(-1, 1, 1) * eye + (1 - saturation).view(-1, 1, 1) * luma.expand(3, 3)
    matrix = hue_rotations(turn) @ saturate * (brightness * contrast).view(-1, 1, 1)
    offset = (brightness * (1 - contrast) * mean_gray).view(-1, 1, 1).expand(n, 3, 1)
    flat = torch.baddbmm(offset, matrix, flat).clamp_(0, 255)
    return flat.div_(255).view(n, 3, height, width)


def hue_rotations(turn: Tensor) -> Tensor:
    """Return rotations of RGB around the gray axis by `turn` radians (Rodrigues): [N, 3, 3]."""
    third = 1 / 3
    cos, sin = torch.cos(turn).view(-1, 1, 1), torch.sin(turn).view(-1, 1, 1)
    eye = torch.eye(3, device=turn.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=turn.device)
    return cos * eye + (1 - cos) * third + sin * math.sqrt(third) * cross


def erase(pixels: Tensor, magnitudes: Tensor, generator: torch.Generator) -> Tensor:
    """Set a random rectangle of some images to ImageNet's mean colour (arXiv 1708.04896)."""
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
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    return torch.where(inside, torch.tensor(MEAN, device=pixels.device).view(3, 1, 1), pixels)
