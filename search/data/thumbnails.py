"""Thumbnails for the audit: a small grayscale copy of each image, its size and colourfulness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 48
"""Side of a thumbnail in pixels: enough to tell two shots of one scene apart, at 2.3 kB each."""

_MAX_COLOURFULNESS = 6.0
"""Largest difference between the channels of a grayscale pixel, in levels of 255: JPEG rounds."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails of n images.

    Attributes:
        pixels: uint8 [n, SIDE, SIDE], luminance. The whole image is stretched to the square.
        sizes: int32 [n, 2], width and height of the images in pixels.
        grayscale: bool [n], whether an image has no colour.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    grayscale: np.ndarray

    @staticmethod
    def empty(n: int) -> Thumbnails:
        """Allocate n thumbnails, to be filled by `draw` or `put`."""
        return Thumbnails(
            np.zeros((n, SIDE, SIDE), np.uint8), np.ones((n, 2), np.int32), np.zeros(n, np.bool_)
        )

    @staticmethod
    def concatenate(parts: Sequence[Thumbnails]) -> Thumbnails:
        """Concatenate thumbnails."""
        return Thumbnails(
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.grayscale for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: np.ndarray) -> Thumbnails:
        """Return some of the thumbnails, given by their int64 indices."""
        return Thumbnails(self.pixels[indices], self.sizes[indices], self.grayscale[indices])

    def put(self, start: int | list[int], other: Thumbnails) -> None:
        """Overwrite thumbnails with others: from index `start` on, or those at some indices."""
        rows = slice(start, start + len(other)) if isinstance(start, int) else start
        self.pixels[rows] = other.pixels
        self.sizes[rows] = other.sizes
        self.grayscale[rows] = other.grayscale

    def draw(self, row: int, image: Image.Image) -> None:
        """Compute the thumbnail of an RGB image and store it at an index."""
        # Two steps: a quick reduction by whole factors, then a filter without aliases.
        small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
        colours = np.asarray(small, np.float32)
        self.pixels[row] = np.rint(colours @ _LUMINANCE)
        self.sizes[row] = image.size
        # A quantile, because neither a coloured speck nor noise makes a colour image.
        colourfulness = colours.max(2) - colours.min(2)
        self.grayscale[row] = np.quantile(colourfulness, 0.95) <= _MAX_COLOURFULNESS
