"""Draw grids of images for TensorBoard: augmented images, top losses, predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from search.console.formatting import percent, printable_name
from search.evaluation.predictions import TOP_K, Predictions
from trainables.augmentation import augment_pixels, draw_magnitudes

SIDE = 132
"""Side of an image in a grid, in pixels."""

RIGHT, WRONG, UNKNOWN = "#2e7d32", "#b3261d", "#8a93a1"
"""Colours of frames: of a correct prediction, of a wrong one, and without a label."""

MAX_TILES = 48
N_DRAWS = 6
"""Augmented samples of each image in a grid of augmentation."""

_PAPER, _INK = "#ffffff", "#1a2230"
_GAP, _FRAME = 8, 4
_FONT_SIZE, _LINE_HEIGHT = 12, 16
_JPEG_QUALITY = 88
_ANTIALIAS_ABOVE = 64  # pixels; smaller images are enlarged with sharp pixels


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of a grid.

    Attributes:
        pixels: uint8 [S, S, 3].
        lines: The text below it.
        frame: Colour of its frame; None draws none.
    """

    pixels: np.ndarray
    lines: tuple[str, ...] = ()
    frame: str | None = None


def augmented_tiles(images: Tensor, strength: float, image_size: int, flip: bool) -> list[Tile]:
    """Return each image as it is, followed by `N_DRAWS` augmented samples of it.

    Args:
        images: uint8 [n, S, S, 3].
        strength: Strength of the augmentation, in [0, 1].
        image_size: Side in pixels of the backbone's input.
        flip: Whether images may be mirrored.
    """
    generator = torch.Generator().manual_seed(0)
    repeated = images.repeat_interleave(1 + N_DRAWS, dim=0)
    magnitudes = draw_magnitudes(len(repeated), strength, generator)
    magnitudes[:: 1 + N_DRAWS] = 0
    pixels = augment_pixels(repeated, image_size, magnitudes, flip, generator)
    seen = (pixels * 255).round().byte()
    return [Tile(image) for image in seen.permute(0, 2, 3, 1).numpy()]


def top_loss_tiles(predictions: Predictions) -> list[Tile]:
    """Return wrong predictions, the most confident first, and then the least confident correct."""
    classes = predictions.classes
    predicted = predictions.probabilities.argmax(1)
    confidence = predictions.probabilities.max(1)
    wrong = predicted != predictions.labels
    order = np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))
    shown = order[predictions.labels[order] >= 0][:MAX_TILES]
    return [
        Tile(
            pixels,
            (
                f"predicted: {classes[predicted[row]]} {percent(float(confidence[row]), 0)}",
                f"label: {classes[predictions.labels[row]]}",
            ),
            WRONG if wrong[row] else RIGHT,
        )
        for row, pixels in zip(shown, predictions.images(shown).numpy(), strict=True)
    ]


def predicted_tiles(predictions: Predictions) -> list[Tile]:
    """Return images with their top-3 predictions, wrong first, then the least confident."""
    classes = predictions.classes
    predicted = predictions.probabilities.argmax(1)
    known = predictions.labels >= 0
    wrong = known & (predicted != predictions.labels)
    shown = np.lexsort((predictions.probabilities.max(1), ~wrong))[:MAX_TILES]
    tiles = []
    for row, pixels in zip(shown, predictions.images(shown).numpy(), strict=True):
        probabilities = predictions.probabilities[row]
        top = np.argsort(-probabilities, kind="stable")[:TOP_K]
        lines = [f"{classes[i]}: {percent(float(probabilities[i]), 0)}" for i in top]
        if known[row]:
            lines.append(f"label: {classes[predictions.labels[row]]}")
        frame = WRONG if wrong[row] else RIGHT if known[row] else UNKNOWN
        tiles.append(Tile(pixels, tuple(lines), frame))
    return tiles


def stratified_rows(labels: np.ndarray, n: int) -> np.ndarray:
    """Return at most n rows, ascending, whose class frequencies are about those of all rows."""
    order = np.argsort(labels, kind="stable")
    places = np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)
    return np.sort(order[places])


def draw_grid(tiles: Sequence[Tile], columns: int) -> Image.Image:
    """Draw tiles row by row.

    Args:
        tiles: The tiles, at least one.
        columns: Tiles in a row.
    """
    n_lines = max(len(tile.lines) for tile in tiles)
    width = SIDE + 2 * _FRAME + _GAP
    height = width + n_lines * _LINE_HEIGHT
    n_rows = -(-len(tiles) // columns)
    grid = Image.new("RGB", (columns * width + _GAP, n_rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(grid)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = _GAP + column * width, _GAP + row * height
        if tile.frame:
            corner = (left + SIDE + 2 * _FRAME - 1, top + SIDE + 2 * _FRAME - 1)
            draw.rectangle((left, top, *corner), fill=tile.frame)
        grid.paste(resize(tile.pixels, SIDE), (left + _FRAME, top + _FRAME))
        below = top + SIDE + 2 * _FRAME + 2
        for line in tile.lines:
            draw.text((left, below), _cut(line, width - _GAP), fill=_INK, font=_font())
            below += _LINE_HEIGHT
    return grid


def resize(pixels: np.ndarray, side: int) -> Image.Image:
    """Resize a square image; enlarged tiny ones keep sharp pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    smooth = len(pixels) > _ANTIALIAS_ABOVE or side < len(pixels)
    return image.resize(
        (side, side), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    )


def as_jpeg(image: Image.Image) -> bytes:
    """Encode an image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib as mpl  # takes a while; grids without text need no font

    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), _FONT_SIZE)


def _cut(line: str, width: int) -> str:
    """Return a line, shortened where it is wider than a tile, with control characters escaped."""
    line = printable_name(line)
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
