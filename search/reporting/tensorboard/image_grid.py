"""Sheets of images, each with a frame and a few words below, as one image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 132
"""Of an image on a sheet, in pixels."""

RIGHT, WRONG, UNKNOWN = "#2e7d32", "#b3261d", "#8a93a1"
"""Colours of frames: of a right answer, of a wrong one, and where nobody knows."""

_PAPER, _INK = "#ffffff", "#1a2230"
_GAP, _FRAME = 8, 4
_FONT_SIZE, _LINE_HEIGHT = 12, 16
_JPEG_QUALITY = 88
_ANTIALIAS_ABOVE = 64  # pixels; smaller images are enlarged with their pixels as they are


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of a sheet.

    Attributes:
        pixels: uint8 [S, S, 3].
        lines: What stands below it.
        frame: Its colour; None has none.
    """

    pixels: np.ndarray
    lines: tuple[str, ...] = ()
    frame: str | None = None


def draw_sheet(tiles: Sequence[Tile], columns: int) -> Image.Image:
    """Draw tiles row by row.

    Args:
        tiles: At least one.
        columns: Tiles in a row.
    """
    n_lines = max(len(tile.lines) for tile in tiles)
    width = SIDE + 2 * _FRAME + _GAP
    height = width + n_lines * _LINE_HEIGHT
    n_rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, n_rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = _GAP + column * width, _GAP + row * height
        if tile.frame:
            corner = (left + SIDE + 2 * _FRAME - 1, top + SIDE + 2 * _FRAME - 1)
            draw.rectangle((left, top, *corner), fill=tile.frame)
        sheet.paste(resize(tile.pixels, SIDE), (left + _FRAME, top + _FRAME))
        below = top + SIDE + 2 * _FRAME + 2
        for line in tile.lines:
            draw.text((left, below), _fitting(line, width - _GAP), fill=_INK, font=_font())
            below += _LINE_HEIGHT
    return sheet


def resize(pixels: np.ndarray, side: int) -> Image.Image:
    """Return a square image at another size; tiny ones keep their pixels sharp."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    smooth = len(pixels) > _ANTIALIAS_ABOVE or side < len(pixels)
    return image.resize(
        (side, side), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    )


def as_jpeg(sheet: Image.Image) -> bytes:
    """Return a sheet as a JPEG file's bytes."""
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib as mpl  # takes a while; sheets without words need no font

    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), _FONT_SIZE)


def _fitting(line: str, width: int) -> str:
    """Return a line, cut where it is wider than a tile."""
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
