"""Register pairs of thumbnails: find the affine map under which two images agree best.

The method of Lucas and Kanade (1981) in its inverse compositional form (Baker and Matthews, IJCV
2004), for many pairs at once. Gain and offset of the brightness are fitted along the way, so that a
brightened copy agrees as well as the original.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

_STEPS = 6
"""Gauss-Newton steps at each of two resolutions, half and full."""
_EDGE_FRACTION = 0.08
"""Fraction of the side: pixels this near to an edge do not drive the fit; an added border would."""
_MARGIN_FRACTION = 0.04
"""Fraction of the side: pixels this near to an edge are not scored; a rotated copy has empty
corners."""
_DAMPING = 1e-3
_BLOCK_PAIRS = 256
"""Pairs that are registered at once: their pixels stay in the CPU's cache."""
_MIN_HALF_DETAIL = 0.6
"""Detail at half resolution below which a pair is not registered at full resolution."""
_MIN_OVERLAP = 0.5
_MAX_STRETCH = 1.5
_MAX_ROTATION = 0.2  # the sine of 11 degrees
_MAX_SHIFT = 0.4  # of half a side


@dataclass(frozen=True)
class Alignment:
    """How well pairs of images agree where they overlap, under the best map.

    Attributes:
        detail: float32 [P] in [-1, 1], correlation of the gradients, that is, of edges and
            texture. 0 where the map is larger than a slight change.
        agreement: float32 [P] in [-1, 1], correlation of the brightness.
        maps: float32 [P, 3, 3], from coordinates of the first image to those of the second; both
            run from -1 to 1 across the image.
    """

    detail: np.ndarray
    agreement: np.ndarray
    maps: np.ndarray


def align(first: np.ndarray, second: np.ndarray, scale: np.ndarray | float = 1.0) -> Alignment:
    """Align pairs of thumbnails.

    Args:
        first: uint8 [P, S, S], S even.
        second: uint8 [P, S, S].
        scale: [P] or one for all pairs: the initial map, as the factor by which the content of the
            first image is larger in the second.
    """
    maps = np.tile(np.eye(3, dtype=np.float32), (len(first), 1, 1))
    maps[:, 0, 0] = maps[:, 1, 1] = scale
    result = Alignment(np.zeros(len(first), np.float32), np.zeros(len(first), np.float32), maps)
    for start in range(0, len(first), _BLOCK_PAIRS):
        rows = np.arange(start, min(start + _BLOCK_PAIRS, len(first)))
        for level in (_half_resolution, _full_resolution):
            one, two = level(first[rows]), level(second[rows])
            maps[rows] = _gauss_newton(one, two, maps[rows])
            result.detail[rows], result.agreement[rows] = _score(one, two, maps[rows])
            rows = rows[result.detail[rows] >= _MIN_HALF_DETAIL]
            if not len(rows):
                break
    return result


def zoom(images: np.ndarray, fraction: float) -> np.ndarray:
    """Crop the centre of images, a fraction of each side, and resize it to their size: float32."""
    side = images.shape[1]
    at = ((np.arange(side) + 0.5) / side - 0.5) * fraction * side + side / 2 - 0.5
    left = np.clip(np.floor(at), 0, side - 2).astype(np.int64)
    pick = np.zeros((side, side), np.float32)  # bilinear interpolation along one side
    pick[np.arange(side), left] = 1 - (at - left)
    pick[np.arange(side), left + 1] = at - left
    return np.asarray(pick @ images.astype(np.float32) @ pick.T)


def _half_resolution(images: np.ndarray) -> np.ndarray:
    n, side = len(images), images.shape[1] // 2
    small = images.reshape(n, side, 2, side, 2).mean((2, 4), dtype=np.float32)
    return _blurred(small, 0.7)


def _full_resolution(images: np.ndarray) -> np.ndarray:
    return _blurred(images.astype(np.float32), 0.7)


def _score(
    first: np.ndarray, second: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate gradients and brightness of the first images and the warped second ones."""
    margin = round(_MARGIN_FRACTION * first.shape[1])
    other, inside = _warp(second, maps, margin)
    inside[:, :margin] = inside[:, -margin:] = False
    inside[:, :, :margin] = inside[:, :, -margin:] = False
    one, two = (np.stack(_gradients(images), 1) for images in (first, other))
    detail = _correlation(one, two, inside[:, None])
    one, two = (_centred(images, inside)[:, None] for images in (first, other))
    agreement = _correlation(one, two, inside[:, None])
    usable = _is_small_change(maps) & (inside.mean((1, 2)) >= _MIN_OVERLAP)
    return np.where(usable, detail, 0), np.where(usable, agreement, 0)


def _gauss_newton(first: np.ndarray, second: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Take Gauss-Newton steps on the maps that warp the second images to the first."""
    n, side = len(first), first.shape[1]
    x, y = _grid(side)
    by_x, by_y = (slope * (side / 2) for slope in _gradients(first))
    # Derivatives of the first image by the six numbers of an affine map: [P, 6, S²].
    slopes = np.stack([by_x * x, by_x * y, by_x, by_y * x, by_y * y, by_y], 1)
    edge = round(_EDGE_FRACTION * side)
    core = np.zeros((side, side), np.bool_)
    core[edge:-edge, edge:-edge] = True
    slopes = (slopes * core).reshape(n, 6, -1)
    steepness = slopes @ slopes.transpose(0, 2, 1)
    diagonal = np.arange(6)
    steepness[:, diagonal, diagonal] *= 1 + _DAMPING
    steepness[:, diagonal, diagonal] += 1e-3
    inverse = np.linalg.inv(steepness)
    for _ in range(_STEPS):
        other, inside = _warp(second, maps, edge)
        inside &= core
        error = _match_brightness(other, first, inside) - first
        error *= inside
        descent = inverse @ (slopes @ error.reshape(n, -1, 1))
        step = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))
        step[:, :2] += descent.reshape(n, 2, 3)
        moved = maps @ _inverse(step)
        # Images with nothing in common diverge: their last map stays.
        maps = np.where(_is_small_change(moved)[:, None, None], moved, maps)
    return maps


def _warp(images: np.ndarray, maps: np.ndarray, margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sample images at mapped coordinates, bilinearly; return also which lie within the margin."""
    n, side = len(images), images.shape[1]
    x, y = (axis.ravel() for axis in _grid(side))
    half = side / 2
    at_x = maps[:, 0, :1] * x + maps[:, 0, 1:2] * y + maps[:, 0, 2:]
    at_y = maps[:, 1, :1] * x + maps[:, 1, 1:2] * y + maps[:, 1, 2:]
    at_x, at_y = (at_x + 1) * half - 0.5, (at_y + 1) * half - 0.5
    last = side - 1
    low, high = margin - 0.5, last - margin + 0.5
    inside = (at_x >= low) & (at_x <= high) & (at_y >= low) & (at_y <= high)
    np.clip(at_x, 0, last - 1e-3, out=at_x)
    np.clip(at_y, 0, last - 1e-3, out=at_y)
    left, top = at_x.astype(np.int32), at_y.astype(np.int32)
    at_x -= left
    at_y -= top
    index = top * side + left + (np.arange(n, dtype=np.int32) * (side * side))[:, None]
    flat = images.ravel()
    upper = flat[index] * (1 - at_x) + flat[index + 1] * at_x
    index += side
    lower = flat[index] * (1 - at_x) + flat[index + 1] * at_x
    sampled = upper * (1 - at_y) + lower * at_y
    return sampled.reshape(n, side, side), inside.reshape(n, side, side)


def _match_brightness(images: np.ndarray, like: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Fit gain and offset of images so that their brightness is nearest to that of others."""
    count = np.maximum(inside.sum((1, 2), keepdims=True, dtype=np.float32), 1)
    mean = (images * inside).sum((1, 2), keepdims=True) / count
    goal = (like * inside).sum((1, 2), keepdims=True) / count
    centred, wanted = (images - mean) * inside, (like - goal) * inside
    variance = (centred * centred).sum((1, 2), keepdims=True) + 1e-3
    gain = (centred * wanted).sum((1, 2), keepdims=True) / variance
    # A gain near 0 would make any two images equal.
    return np.asarray((images - mean) * np.clip(gain, 0.4, 2.5) + goal)


def _centred(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    count = np.maximum(inside.sum((1, 2), keepdims=True, dtype=np.float32), 1)
    return np.asarray(images - (images * inside).sum((1, 2), keepdims=True) / count)


def _correlation(one: np.ndarray, two: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of [P, C, S, S] fields over the pixels inside: [P]."""
    one, two = one * inside, two * inside
    ones, twos, both = (
        np.einsum("pcij,pcij->p", a, b) for a, b in ((one, one), (two, two), (one, two))
    )
    return np.asarray(both / np.sqrt(ones * twos + 1e-3))


def _gradients(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return central differences along x and y, per pixel."""
    by_y, by_x = np.gradient(images, axis=(1, 2))
    return by_x, by_y


def _blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    for axis in (1, 2):
        images = gaussian_filter1d(images, sigma, axis=axis, mode="nearest", truncate=2.5)
    return images


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the pixel centres, float32 [S, S], from -1 to 1."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / (side / 2) - 1
    return np.broadcast_to(line, (side, side)), np.broadcast_to(line[:, None], (side, side))


def _inverse(maps: np.ndarray) -> np.ndarray:
    """Invert affine maps: [P, 3, 3]."""
    a, b, c, d = maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1]
    scale = 1 / np.where(np.abs(a * d - b * c) < 1e-3, 1e-3, a * d - b * c)
    result = np.zeros_like(maps)
    result[:, 0, 0], result[:, 0, 1] = d * scale, -b * scale
    result[:, 1, 0], result[:, 1, 1] = -c * scale, a * scale
    result[:, :2, 2] = -(result[:, :2, :2] @ maps[:, :2, 2:])[:, :, 0]
    result[:, 2, 2] = 1
    return result


def _is_small_change(maps: np.ndarray) -> np.ndarray:
    """Return which maps stretch, rotate and shift no more than a crop or a border does."""
    stretch = np.stack([maps[:, 0, 0], maps[:, 1, 1]], 1)
    rotation = np.abs(np.stack([maps[:, 0, 1], maps[:, 1, 0]], 1)).max(1)
    shift = np.abs(maps[:, :2, 2]).max(1)
    size = (stretch >= 1 / _MAX_STRETCH).all(1) & (stretch <= _MAX_STRETCH).all(1)
    return np.asarray(size & (rotation <= _MAX_ROTATION) & (shift <= _MAX_SHIFT))
