"""Save the images that the report shows, and embed them in it.

`results/<run>/gallery/` holds them as small JPEGs, so that the report can be written again when the
images themselves have moved, or never were files.
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
from trainables.atomic_write import write_atomically

SIDE = 160
"""Side of a saved image, in pixels; smaller images keep their size."""

PARTS = ("data", "external")
"""The two sets of images; each has its own names."""

AUGMENTATION = Path("gallery") / "augmentation.jpg"
"""Training images with augmented samples, in the run's folder."""

_HEATMAP = ".gradcam.png"  # grayscale, a pixel for each position of the feature map
_QUALITY = 82  # a photo takes about 6 kB
_MAX_SHARP_SIDE = 64  # pixels; up to here an image is saved without colour subsampling


class Gallery:
    """The saved images of a run, by part and name."""

    def __init__(self, run: Path) -> None:
        self.path = run / "gallery"

    def save(
        self, part: str, names: Sequence[str], images: Iterable[np.ndarray], image_size: int
    ) -> None:
        """Save images as the model sees them, in place of earlier ones of the same name.

        Args:
            part: One of `PARTS`.
            names: Names of the images, as in the run's tables.
            images: Each uint8 [S, S, 3], S >= image_size.
            image_size: Side in pixels of the central square that the model sees.
        """
        for name, pixels in zip(names, images, strict=True):
            image = Image.fromarray(_center_crop(np.asarray(pixels), image_size))
            with write_atomically(self._file(part, name)) as partial:
                partial.write_bytes(encode(image))

    def find(self, part: str, name: str) -> bytes | None:
        """Return a saved image's JPEG; None where there is none."""
        path = self._file(part, name)
        return path.read_bytes() if path.is_file() else None

    def save_heatmap(self, part: str, name: str, heatmap: np.ndarray) -> None:
        """Save an image's Grad-CAM heat map.

        Args:
            part: One of `PARTS`.
            name: Name of the image.
            heatmap: [h, w] in [0, 1], over the square that the model sees.
        """
        path = self._file(part, name).with_suffix(_HEATMAP)
        with write_atomically(path) as partial:
            Image.fromarray(np.rint(255 * heatmap).astype(np.uint8)).save(partial, "PNG")

    def find_heatmap(self, part: str, name: str) -> np.ndarray | None:
        """Return a saved heat map, in [0, 1]; None where there is none."""
        path = self._file(part, name).with_suffix(_HEATMAP)
        image = _open(path.read_bytes()) if path.is_file() else None
        return None if image is None else np.asarray(image.convert("L")) / 255

    def delete_heatmaps(self, part: str) -> None:
        """Delete the heat maps of an earlier model."""
        for path in (self.path / part).glob(f"*{_HEATMAP}"):
            path.unlink()

    def _file(self, part: str, name: str) -> Path:
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, but got {part!r}")
        key = blake2b(readable(name).encode(), digest_size=12).hexdigest()
        return self.path / part / f"{key}.jpg"


class EmbeddedImages:
    """Embeds images in a page as data URIs, up to a number of bytes."""

    def __init__(self, gallery: Gallery, budget_bytes: int) -> None:
        self._gallery = gallery
        self._left_bytes = budget_bytes
        self.n_omitted = 0
        """Saved images for which no bytes were left."""

    def source(self, part: str, name: str) -> str | None:
        """Return an image as a data URI; None where there is no image or no room."""
        found = self._gallery.find(part, name)
        return None if found is None else self.embed(found)

    def with_heatmap(self, part: str, name: str) -> str | None:
        """Return an image under its heat map, as a data URI; None as for `source`."""
        found, heatmap = self._gallery.find(part, name), self._gallery.find_heatmap(part, name)
        if found is None or heatmap is None:
            return None
        image = _open(found)
        return None if image is None else self.embed(encode(overlay(image, heatmap)))

    def embed(self, jpeg: bytes) -> str | None:
        """Return a JPEG as a data URI; None where there is no room."""
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        if len(uri) > self._left_bytes:
            self.n_omitted += 1
            return None
        self._left_bytes -= len(uri)
        return uri


def _open(content: bytes) -> Image.Image | None:
    """Decode an image that a run has saved; None where its file is damaged."""
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        image.load()
    except Exception:  # Pillow's readers raise nearly anything on damaged bytes
        return None
    return image


def encode(image: Image.Image) -> bytes:
    """Encode an image as a small JPEG."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sharp = max(small.size) <= _MAX_SHARP_SIDE
    buffer = io.BytesIO()
    small.save(
        buffer,
        "JPEG",
        quality=95 if sharp else _QUALITY,
        subsampling=0 if sharp else 2,
        optimize=True,
    )
    return buffer.getvalue()


def overlay(image: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """Lay a heat map over a grayscale image, in matplotlib's "inferno".

    Args:
        image: RGB.
        heatmap: [h, w] in [0, 1]; stretched over the image.
    """
    side = max(SIDE, *image.size)
    gray = np.asarray(image.convert("L").resize((side, side)), np.float64)[..., None] / 255
    levels = Image.fromarray(heatmap.astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    level = np.clip(np.asarray(levels, np.float64), 0, 1)
    colours = colormaps["inferno"](level)[..., :3]
    alpha = 0.2 + 0.5 * level[..., None]
    return Image.fromarray(np.rint(255 * ((1 - alpha) * gray + alpha * colours)).astype(np.uint8))


def _center_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    start = round((pixels.shape[0] - side) / 2)
    return pixels[start : start + side, start : start + side]
