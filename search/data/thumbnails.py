"""What the audit keeps of an image: a small grey copy, its size, and whether it has colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 48
"""Of a sketch, in pixels: enough to tell two shots of one scene apart, at 2.3 kB an image."""

_GREY_SPREAD = 6.0  # levels; JPEG's rounding of colours stays below
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Sketches of n images.

    Attributes:
        pixels: uint8 [n, SIDE, SIDE], luminance. The whole image is stretched to the square.
        sizes: int32 [n, 2], width and height in pixels.
        grey: bool [n], whether an image has no colour.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    grey: np.ndarray

    @staticmethod
    def empty(n: int) -> Thumbnails:
        """Return room for n sketches."""
        return Thumbnails(
            np.zeros((n, SIDE, SIDE), np.uint8), np.ones((n, 2), np.int32), np.zeros(n, np.bool_)
        )

    @staticmethod
    def join(parts: Sequence[Thumbnails]) -> Thumbnails:
        """Return the sketches of all parts, in their order."""
        return Thumbnails(
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.grey for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: np.ndarray) -> Thumbnails:
        """Return some of the sketches, given by their int64 indices."""
        return Thumbnails(self.pixels[indices], self.sizes[indices], self.grey[indices])

    def put(self, start: int, other: Thumbnails) -> None:
        """Write other sketches over these, from an index on."""
        rows = slice(start, start + len(other))
        self.pixels[rows], self.sizes[rows], self.grey[rows] = (
            other.pixels,
            other.sizes,
            other.grey,
        )

    def draw(self, row: int, image: Image.Image) -> None:
        """Sketch an RGB image into a row."""
        # Two steps: a quick reduction by whole factors, then a filter without aliases.
        small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
        colours = np.asarray(small, np.float32)
        self.pixels[row] = np.rint(colours @ _LUMINANCE)
        self.sizes[row] = image.size
        # A coloured speck is no colour image, nor is noise: most pixels are asked.
        spread = colours.max(2) - colours.min(2)
        self.grey[row] = np.quantile(spread, 0.95) <= _GREY_SPREAD
