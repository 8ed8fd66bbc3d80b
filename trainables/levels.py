"""Scale the levels of images of more than 8 bits to 8, by the black and the white of a whole set.

Files do not say what their white is: 16 bits often hold the 4,095 levels of a camera or a scanner,
and floating-point numbers hold anything. Black and white are therefore those of a set of images
(`set_levels`), which a model's card keeps, so that an image means the same in every set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

Range = tuple[float, float]
"""The level that is black, and the one that is white."""


class Levels(NamedTuple):
    """Black and white of the images of more than 8 bits, of integers and of floats."""

    integers: Range = (0.0, 65535.0)
    floats: Range = (0.0, 1.0)

    def of(self, extremes: Extremes) -> Range:
        """Return black and white of an image."""
        return self.floats if extremes.is_float else self.integers


DEFAULT_LEVELS = Levels()
"""Black and white where no set is known."""


class Extremes(NamedTuple):
    """The lowest and the highest level of an image of more than 8 bits."""

    low: float
    high: float
    is_float: bool


_INTEGER_WHITES = tuple(2.0**bits - 1 for bits in range(8, 33))
_FLOAT_WHITES = (1.0, 255.0, 65535.0)
_MIN_OF_WHITE = 1 / 16
"""Fraction of a white that the highest of a set of floats has at least, for that to be white."""

_BLOCK_PIXELS = 2**20

_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBX", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B"))  # machines are little-endian
}
"""By Pillow's name of the layout of 16-bit colours, of which it keeps the high bytes alone, the
layout that makes it keep the low ones."""
_GRAY_ALPHA, _FOUR_BYTES = "LA;16B", "RGBA"
"""Layout of 16-bit gray with alpha, and the one of as many bytes that keeps them all."""

_PHOTOMETRIC_TAG, _EXTRA_SAMPLES_TAG, _SAMPLE_FORMAT_TAG, _NO_DATA_TAG = 262, 338, 339, 42113
_WHITE_IS_ZERO, _UNSIGNED, _ALPHA = 0, 1, (1, 2)
_NO_DATA = (-9999.0, -32768.0, -99999.0)
_MAX_FLOAT = 1e30  # a larger one stands for a missing value


def set_levels(found: Iterable[Extremes]) -> Levels:
    """Choose black and white of a set of images by their lowest and highest levels.

    White is the least 2ᵏ − 1 that no integer exceeds, and 1, 255 or 65,535 for floats not far below
    it; where that is none, or levels are negative, it is the highest level. Black is 0, and the
    lowest level where that is negative or above half of the white.
    """
    extremes = list(found)
    integers = _range([one for one in extremes if not one.is_float], _INTEGER_WHITES, 0)
    floats = _range([one for one in extremes if one.is_float], _FLOAT_WHITES, _MIN_OF_WHITE)
    return Levels(integers or DEFAULT_LEVELS.integers, floats or DEFAULT_LEVELS.floats)


def _range(extremes: Sequence[Extremes], whites: Sequence[float], near: float) -> Range | None:
    if not extremes:
        return None
    low = min(one.low for one in extremes)
    high = max(one.high for one in extremes)
    white = high if low < 0 else next((w for w in whites if near * w <= high <= w), high)
    black = 0.0 if 0 <= low <= white / 2 or low == high >= 0 else low
    return black, white if white > black else black + 1


def to_8_bits(image: Image.Image, levels: Levels) -> tuple[Image.Image, Extremes | None]:
    """Load the pixels of an image with 8 bits a channel.

    Levels below black and missing ones (NaN, what the file names as no data, −9999 and the like)
    become black. A fourth band of a TIFF that is no alpha is dropped.

    Args:
        image: An image, best before its pixels are loaded.
        levels: Black and white of the set that it is of.

    Returns:
        The image, and its extremes, if it has more than 8 bits.
    """
    if image.mode in _DEEP_MODES:
        return _gray_to_8_bits(image, levels)
    layout, has_extra_band = _layout(image), _has_extra_band(image)
    extremes = None
    if layout in _OTHER_BYTE or layout == _GRAY_ALPHA:
        image, extremes = _colours_to_8_bits(image, layout, levels)
    image.load()
    return image.convert(image.mode[:-1]) if has_extra_band else image, extremes


def _gray_to_8_bits(image: Image.Image, levels: Levels) -> tuple[Image.Image, Extremes | None]:
    tags = getattr(image, "tag_v2", {})  # before the pixels are loaded, which closes the file
    is_inverted = tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    is_unsigned = tags.get(_SAMPLE_FORMAT_TAG, (_UNSIGNED,)) == (_UNSIGNED,)
    no_data = _declared_no_data(tags.get(_NO_DATA_TAG))
    image.load()
    is_viewed = image.mode == "I" and image.format == "TIFF" and is_unsigned

    def read(block: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Return levels, and which are missing."""
        values = np.asarray(block)
        values = (values.view(np.uint32) if is_viewed else values).astype(np.float64)
        return values, ~(np.abs(values) < _MAX_FLOAT) | np.isin(values, no_data)

    low, high = math.inf, -math.inf
    for _, block in blocks(image):
        values, missing = read(block)
        low = min(low, float(values.min(initial=math.inf, where=~missing)))
        high = max(high, float(values.max(initial=-math.inf, where=~missing)))
    if low > high:
        return Image.new("L", image.size), None
    extremes = Extremes(low, high, image.mode == "F")
    black, white = levels.of(extremes)
    result = Image.new("L", image.size)
    for top, block in blocks(image):
        values, missing = read(block)
        values[missing] = black
        pixels = _scale(values, black, white)
        if is_inverted:
            pixels = 255 - pixels
        pixels[missing] = 0
        result.paste(Image.fromarray(pixels), (0, top))
    return result, extremes


def _declared_no_data(text: object) -> Sequence[float]:
    """Return the levels that stand for missing values: the usual ones, and a GeoTIFF's own."""
    try:
        return (*_NO_DATA, float(str(text).strip(" \0")))
    except ValueError:
        return _NO_DATA


def _colours_to_8_bits(
    image: Image.Image, layout: str, levels: Levels
) -> tuple[Image.Image, Extremes | None]:
    black, white = levels.integers
    low_bytes = None if (black, white) == DEFAULT_LEVELS.integers else _low_bytes(image, layout)
    image.load()
    highest = max(np.asarray(block)[:, :, :3].max() for _, block in blocks(image))
    extremes = Extremes(0.0, float(highest) * 256 + 255, False)
    if low_bytes is None:
        return image, extremes
    result = Image.new(image.mode, image.size)
    for top, block in blocks(image):
        low = low_bytes.crop((0, top, image.width, top + block.height))
        values = np.asarray(block).astype(np.float64) * 256 + np.asarray(low)
        result.paste(Image.fromarray(_scale(values, black, white)), (0, top))
    return result, extremes


def _low_bytes(image: Image.Image, layout: str) -> Image.Image | None:
    """Read the low bytes of 16-bit colours; None where the file is not at hand any more."""
    file = getattr(image, "fp", None)
    if file is None:
        return None
    file.seek(0)
    again = Image.open(file, formats=(str(image.format),))
    other = _FOUR_BYTES if layout == _GRAY_ALPHA else _OTHER_BYTE[layout]
    again.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
        for tile in again.tile
    ]
    again.load()
    if layout != _GRAY_ALPHA:
        return again
    gray, alpha = again.getchannel(1), again.getchannel(3)
    return Image.merge("RGBA", (gray, gray, gray, alpha))


def _layout(image: Image.Image) -> str:
    """Return Pillow's name of the layout of pixels that are not loaded; "" if they are."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def blocks(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield an image's rows in blocks, each with the number of its first row.

    A large image is converted block by block, so that no copy of it is made in floating point.
    """
    n_rows = max(1, _BLOCK_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        yield top, image.crop((0, top, image.width, min(top + n_rows, image.height)))


def _scale(values: np.ndarray, black: float, white: float) -> np.ndarray:
    scaled = (values - black) * (255 / (white - black))
    return np.asarray(np.rint(scaled.clip(0, 255)), dtype=np.uint8)


def _has_extra_band(image: Image.Image) -> bool:
    """Return whether what Pillow takes for alpha is a band that a TIFF does not call so."""
    kinds = getattr(image, "tag_v2", {}).get(_EXTRA_SAMPLES_TAG, ())
    is_alpha = image.format != "TIFF" or bool(set(_ALPHA) & set(kinds))
    return not is_alpha and image.mode in ("RGBA", "LA")
