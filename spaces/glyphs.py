"""Render letters and digits in the fonts that matplotlib bundles.

`render_glyphs` renders the images that `tinynet` is pretrained on, and `external_digits` the
external test set of the digits space, in fonts that the pretraining does not use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TypeAlias

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# No font family is in both: DejaVu and STIX for pretraining, Computer Modern for external tests.
PRETRAINING_FONTS: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
# Without cmmi10, whose digits are old-style numerals that reach below the line.
EXTERNAL_FONTS: tuple[str, ...] = ("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10")

CHARACTERS: str = digits + ascii_uppercase + ascii_lowercase

Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]

_FONT_PIXELS = 48
_CANVAS_PIXELS = 64
_BITMAP_PIXELS = 32  # scikit-learn's digits were counted in 4 × 4 blocks of such bitmaps
_COARSE_PIXELS = 8
_MESH_CELLS = 4


@dataclass(frozen=True)
class Variation:
    """Ranges of the random deformations of glyphs, which are drawn uniformly.

    Attributes:
        rotation_degrees: Largest rotation in either direction.
        shear: Largest ratio of horizontal shift to height in either direction.
        stretch: Largest change of the aspect ratio, by a factor of 1 + `stretch` or its inverse.
        wobble_pixels: Largest displacement of a mesh point, on a canvas of 64 pixels.
        blur_pixels: Smallest and largest blur before the threshold.
        threshold: Smallest and largest brightness of ink, as a fraction of the brightest pixel; a
            lower one makes bolder strokes.
        size: Smallest and largest fraction of the image's side that a glyph's longer side covers.
        drift: Largest distance from the middle in either direction, as a fraction of the margin.
        coarse_fraction: Fraction of the images that are reduced to 8 × 8 pixels without a margin,
            as scikit-learn's digits were.
    """

    rotation_degrees: float
    shear: float
    stretch: float
    wobble_pixels: float
    blur_pixels: tuple[float, float]
    threshold: tuple[float, float]
    size: tuple[float, float]
    drift: float
    coarse_fraction: float


PRETRAINING = Variation(
    rotation_degrees=15.0,
    shear=0.3,
    stretch=0.35,
    wobble_pixels=5.0,
    blur_pixels=(0.7, 2.0),
    threshold=(0.12, 0.45),
    size=(0.6, 1.0),
    drift=1.0,
    coarse_fraction=0.7,
)
MILD = Variation(
    rotation_degrees=5.0,
    shear=0.1,
    stretch=0.1,
    wobble_pixels=0.0,
    blur_pixels=(0.7, 1.2),
    threshold=(0.15, 0.35),
    size=(0.9, 1.0),
    drift=0.3,
    coarse_fraction=1.0,
)


def render_glyphs(
    n_glyphs: int,
    *,
    seed: int,
    characters: str = CHARACTERS,
    fonts: Sequence[str] = PRETRAINING_FONTS,
    variation: Variation = PRETRAINING,
    image_size: int = 32,
) -> tuple[Images, Labels]:
    """Render glyphs of random characters and fonts, light on black.

    The same arguments give the same images, independently of earlier calls.

    Args:
        n_glyphs: How many, at least 1.
        seed: Seed of every draw.
        characters: The characters to draw from; each is a class.
        fonts: Names of fonts that matplotlib bundles, without the suffix.
        variation: Ranges of the deformations.
        image_size: Height and width in pixels.

    Returns:
        Images [n_glyphs, image_size, image_size] and labels [n_glyphs] that index `characters`.
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(characters), size=n_glyphs)
    font_indices = generator.integers(len(fonts), size=n_glyphs)
    images = np.empty((n_glyphs, image_size, image_size), dtype=np.uint8)
    for index, (label, font_index) in enumerate(zip(labels, font_indices, strict=True)):
        bitmap = _bitmap(fonts[font_index], characters[label], variation, generator)
        if generator.random() < variation.coarse_fraction:
            coarse = _coarsen(bitmap, variation, generator)
            image = coarse.resize((image_size, image_size), Image.Resampling.BILINEAR)
        else:
            image = _place(bitmap, image_size, variation, generator)
        images[index] = np.asarray(image)
    return images, labels


def external_digits(seed: int = 0, variants: int = 4) -> tuple[Images, Labels, list[str]]:
    """Render the external test set of the digits space: 0 to 9 in fonts unused in pretraining.

    Like scikit-learn's digits, they are 32 × 32 bitmaps whose ink is counted in blocks of 4 × 4
    pixels, so that only the shapes differ.

    Args:
        seed: Seed of the mild variation in size, position and weight.
        variants: How many of each digit in each font.

    Returns:
        Images [N, 8, 8] with 17 levels from 0 to 255, labels [N] from 0 to 9, and a name for
        each, such as `7-cmr10-0`; N is 10 × fonts × `variants`.
    """
    generator = np.random.default_rng(seed)
    images, labels, names = [], [], []
    for font in EXTERNAL_FONTS:
        for label, digit in enumerate(digits):
            for variant in range(variants):
                bitmap = _bitmap(font, digit, MILD, generator)
                images.append(np.asarray(_coarsen(bitmap, MILD, generator)))
                labels.append(label)
                names.append(f"{digit}-{font}-{variant}")
    return np.stack(images), np.array(labels, dtype=np.int64), names


@lru_cache(maxsize=4096)
def _stencil(font: str, character: str) -> Image.Image:
    """Draw a character in the middle of the canvas, white on black."""
    path = Path(mpl.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    face = ImageFont.truetype(str(path), _FONT_PIXELS)
    left, top, right, bottom = face.getbbox(character)
    stencil = Image.new("L", (_CANVAS_PIXELS, _CANVAS_PIXELS))
    corner = (
        (_CANVAS_PIXELS - (right - left)) / 2 - left,
        (_CANVAS_PIXELS - (bottom - top)) / 2 - top,
    )
    ImageDraw.Draw(stencil).text(corner, character, fill=255, font=face)
    return stencil


def _bitmap(
    font: str, character: str, variation: Variation, generator: np.random.Generator
) -> Image.Image:
    """Deform a character, change the weight of its strokes, and crop it to its ink."""
    angle = np.deg2rad(variation.rotation_degrees) * generator.uniform(-1, 1)
    shear = variation.shear * generator.uniform(-1, 1)
    widen = (1 + variation.stretch) ** generator.uniform(-1, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_source = turn @ np.array([[widen**-0.5, shear], [0.0, widen**0.5]])

    # 1. Deform: one mesh for the affine map and the wobble, so pixels are interpolated once.
    ticks = np.linspace(0, _CANVAS_PIXELS, _MESH_CELLS + 1)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1) - _CANVAS_PIXELS / 2
    source = grid @ to_source.T + _CANVAS_PIXELS / 2
    source += variation.wobble_pixels * generator.uniform(-1, 1, size=source.shape)
    mesh = []
    for row in range(_MESH_CELLS):
        for column in range(_MESH_CELLS):
            box = (ticks[column], ticks[row], ticks[column + 1], ticks[row + 1])
            # Pillow names a quadrilateral's corners counter-clockwise from the upper left.
            quad = (
                *source[row, column],
                *source[row + 1, column],
                *source[row + 1, column + 1],
                *source[row, column + 1],
            )
            mesh.append((tuple(int(edge) for edge in box), quad))
    deformed = _stencil(font, character).transform(
        (_CANVAS_PIXELS, _CANVAS_PIXELS), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
    )

    # 2. Set the weight by a threshold on the blurred strokes; a relative one keeps thin strokes.
    blurred = deformed.filter(ImageFilter.GaussianBlur(generator.uniform(*variation.blur_pixels)))
    brightness = np.asarray(blurred)
    ink = brightness >= generator.uniform(*variation.threshold) * brightness.max()
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(cropped.astype(np.uint8) * 255)


def _coarsen(
    bitmap: Image.Image, variation: Variation, generator: np.random.Generator
) -> Image.Image:
    """Count the ink of a bitmap of 32 × 32 in blocks of 4 × 4, into 17 levels from 0 to 255."""
    placed = _place(bitmap, _BITMAP_PIXELS, variation, generator)
    ink = np.asarray(placed) >= 128
    block = _BITMAP_PIXELS // _COARSE_PIXELS
    counts = ink.reshape(_COARSE_PIXELS, block, _COARSE_PIXELS, block).sum(axis=(1, 3))
    return Image.fromarray(np.rint(counts * (255 / block**2)).astype(np.uint8))


def _place(
    bitmap: Image.Image, image_size: int, variation: Variation, generator: np.random.Generator
) -> Image.Image:
    """Scale a glyph to a fraction of the image and place it, at most `drift` off the middle."""
    scale = image_size * generator.uniform(*variation.size) / max(bitmap.size)
    width, height = (max(1, round(side * scale)) for side in bitmap.size)
    glyph = bitmap.resize((width, height), Image.Resampling.BOX)
    image = Image.new("L", (image_size, image_size))
    drift_x, drift_y = variation.drift * generator.uniform(-1, 1, size=2)
    left = round((image_size - width) * (1 + drift_x) / 2)
    top = round((image_size - height) * (1 + drift_y) / 2)
    image.paste(glyph, (left, top))
    return image
