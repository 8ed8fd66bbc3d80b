"""The images that a run keeps for people to look at.

`results/<run>/gallery/` holds small JPEGs of those that the report shows. So the report can be
written again when the images themselves have moved, or never lay in files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from search.console.formatting import readable

SIDE = 160
"""Of a kept image, in pixels; smaller ones keep their size."""

PARTS = ("data", "external")
"""Where a name is from: two images of one name may be in both."""

_HEAT = ".heat.png"  # grey, a pixel a place
_QUALITY = 82  # a photo takes about 6 kB
_PIXEL_ART = 64  # pixels a side, up to which an image is kept without blur of colours


class Gallery:
    """A run's kept images, by part and name."""

    def __init__(self, run: Path) -> None:
        self.path = run / "gallery"

    def keep(
        self, part: str, names: Sequence[str], images: Iterable[np.ndarray], image_size: int
    ) -> None:
        """Keep images, as the model sees them; those that are kept already are replaced.

        Args:
            part: One of `PARTS`.
            names: Theirs, as the run's tables have them.
            images: Each uint8 [S, S, 3], S >= image_size, as they are packed.
            image_size: Side in pixels of the central square that the model sees.
        """
        for name, pixels in zip(names, images, strict=True):
            path = self._file(part, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(Image.fromarray(_centre(np.asarray(pixels), image_size))))

    def find(self, part: str, name: str) -> bytes | None:
        """Return a kept image's JPEG, or None where there is none."""
        path = self._file(part, name)
        return path.read_bytes() if path.is_file() else None

    def keep_heat(self, part: str, name: str, heat: np.ndarray) -> None:
        """Keep where in an image the model found what it says.

        Args:
            part: One of `PARTS`.
            name: The image's.
            heat: [h, w] in [0, 1], over the square that the model sees.
        """
        path = self._file(part, name).with_suffix(_HEAT)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(255 * heat).astype(np.uint8)).save(path)

    def find_heat(self, part: str, name: str) -> np.ndarray | None:
        """Return what `keep_heat` kept, in [0, 1] to within rounding, or None."""
        path = self._file(part, name).with_suffix(_HEAT)
        return np.asarray(Image.open(path)) / 255 if path.is_file() else None

    def forget_heat(self, part: str) -> None:
        """Take away what an earlier model found."""
        for path in (self.path / part).glob(f"*{_HEAT}"):
            path.unlink()

    def _file(self, part: str, name: str) -> Path:
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, but got {part!r}")
        key = blake2b(readable(name).encode(), digest_size=12).hexdigest()
        return self.path / part / f"{key}.jpg"


class EmbeddedImages:
    """Hands a page its images, as data URIs, until the page has as many bytes as it may."""

    def __init__(self, gallery: Gallery, budget_bytes: int) -> None:
        self._gallery = gallery
        self._left_bytes = budget_bytes
        self.left_out = 0
        """Images that are kept, and that the page has no room for."""

    def source(self, part: str, name: str) -> str | None:
        """Return what an `<img>` has for its `src`; None where there is no image or no room."""
        found = self._gallery.find(part, name)
        return None if found is None else self.embed(found)

    def with_heatmap(self, part: str, name: str) -> str | None:
        """Return an image with what the model saw in it glowing; None as for `source`."""
        found, heat = self._gallery.find(part, name), self._gallery.find_heat(part, name)
        if found is None or heat is None:
            return None
        return self.embed(encode(overlay(Image.open(io.BytesIO(found)), heat)))

    def embed(self, jpeg: bytes) -> str | None:
        """Return an image as a data URI; None where there is no room."""
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        if len(uri) > self._left_bytes:
            self.left_out += 1
            return None
        self._left_bytes -= len(uri)
        return uri


def encode(image: Image.Image) -> bytes:
    """Return an image as a small JPEG."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sharp = max(small.size) <= _PIXEL_ART
    buffer = io.BytesIO()
    small.save(
        buffer,
        "JPEG",
        quality=95 if sharp else _QUALITY,
        subsampling=0 if sharp else 2,
        optimize=True,
    )
    return buffer.getvalue()


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay heat over an image in grey: from dark violet over orange to yellow, as it rises.

    Args:
        image: RGB.
        heat: [h, w] in [0, 1]; stretched over the image.
    """
    side = max(SIDE, *image.size)
    grey = np.asarray(image.convert("L").resize((side, side)), np.float64)[..., None] / 255
    levels = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(levels, np.float64), 0, 1)
    colours = colormaps["inferno"](level)[..., :3]
    share = 0.2 + 0.5 * level[..., None]
    return Image.fromarray(np.rint(255 * ((1 - share) * grey + share * colours)).astype(np.uint8))


def _centre(pixels: np.ndarray, side: int) -> np.ndarray:
    start = round((pixels.shape[0] - side) / 2)
    return pixels[start : start + side, start : start + side]
