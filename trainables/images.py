"""From an image file to the pixels that a backbone sees.

Every stage shares these pixels: the packed table, the trials, `predict` and the exported model.
PyTorch is imported where it is used: the processes that only decode then start a second sooner.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from spaces.base import ResizeMode

MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue, of values in [0, 1]."""
STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue, of values in [0, 1]."""

ImageSource = str | PathLike[str] | IO[bytes]

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".gif", ".webp", ".avif"),
        *(".tif", ".tiff", ".bmp", ".dib", ".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes, in lower case, of the files taken for images by their name."""

_FORMATS = (
    *("JPEG", "JPEG2000", "PNG", "GIF", "WEBP", "AVIF"),
    *("TIFF", "BMP", "DIB", "ICO", "TGA", "PPM"),
)
"""What those files hold, by Pillow's names (MPO is one of JPEG's). No other is tried, whatever a
file's content says: for PostScript, Pillow would start another program."""

CROP_FRACTION = 0.875
"""Share of the shorter side that evaluation keeps, as in torchvision's own recipes (224 of 256)."""

MAX_SQUEEZED = 2.0
"""Photos of 4:3 and 3:2 become squares of nothing but image; a screwdriver stays long. Measured:
docs/benchmarks.md."""

_WIDEST = 64
"""Aspect ratio above which only the part that is kept is resized: one pixel by 10,000, resized
whole, would take gigabytes."""

# Where Pillow only warns (damaged metadata, very many pixels) the image is read all the same.
# A filter set once is safe with threads; `warnings.catch_warnings` is not.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """A file holds no image that can be read.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path_or_file: ImageSource) -> Image.Image:
    """Read an image as a person sees it: upright, opaque, in 8-bit colour.

    The first frame of an animation or the first page is read. Transparent parts lie on white.
    16-bit grey is scaled to 8 bits. Colour profiles are ignored, as torchvision does.

    Returns:
        An RGB image, its EXIF orientation applied.

    Raises:
        ImageError: the file is missing, empty, cut short, damaged, of no known format, or has
            too many pixels to be safe to decode.
    """
    try:
        with Image.open(path_or_file, formats=_FORMATS) as image:
            image.load()
            return _as_rgb(_upright(image))
    # Pillow's readers raise nearly anything on damaged bytes: SyntaxError, struct.error, KeyError…
    except Exception as error:
        raise ImageError(_name_of(path_or_file), _reason(error, path_or_file)) from error


def to_square(
    image: Image.Image,
    cache_size: int,
    image_size: int | None = None,
    resize_mode: ResizeMode = "crop",
) -> np.ndarray:
    """Make an image the square that is packed.

    Framed "pad", the evaluation crop sees all of it: its longer side is squeezed to that of the
    shorter, by a factor of `MAX_SQUEEZED` at most, and the outermost pixels go on from there to
    the edges. Framed "crop", its shorter side is resized to `cache_size` and the square at the
    centre is kept: the pixels are those of torchvision's `Resize(cache_size)`, and the square lies
    where `crop_and_normalise` later finds just the pixels of `CenterCrop(image_size)`.

    Args:
        image: an RGB image.
        cache_size: side of the square, in pixels.
        image_size: side in pixels of the evaluation crop that will be taken; None is
            `CROP_FRACTION` of `cache_size`.
        resize_mode: "pad" or "crop".

    Returns:
        uint8 [cache_size, cache_size, 3].
    """
    image_size = image_size or round(cache_size * CROP_FRACTION)
    if resize_mode == "pad":
        return _pad_to_square(image, cache_size, image_size)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long_packed = int(cache_size * long / short)  # torchvision's rounding
    # CenterCrop rounds its offset for the whole image. Rounding once for the square and once more
    # for the crop inside it would often miss that by a pixel.
    offset = _centre(long_packed, image_size) - _centre(cache_size, image_size)
    left, top = (offset, 0) if width >= height else (0, offset)
    square = (cache_size, cache_size)
    if long > _WIDEST * short:
        scale = long / long_packed
        kept = (offset * scale, (offset + cache_size) * scale)
        box = (kept[0], 0, kept[1], height) if width >= height else (0, kept[0], width, kept[1])
        return np.asarray(image.resize(square, Image.Resampling.BILINEAR, box=box))
    decoded = (long_packed, cache_size) if width >= height else (cache_size, long_packed)
    if decoded != image.size:
        image = image.resize(decoded, Image.Resampling.BILINEAR)
    if decoded != square:
        image = image.crop((left, top, left + cache_size, top + cache_size))
    return np.asarray(image)


def _pad_to_square(image: Image.Image, cache_size: int, image_size: int) -> np.ndarray:
    longer = max(image.size)
    width, height = (
        max(1, round(image_size * min(1.0, MAX_SQUEEZED * side / longer))) for side in image.size
    )
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    # What fills the evaluation crop starts where `crop_and_normalise` cuts.
    left, top = (
        _centre(cache_size, image_size) + (image_size - side) // 2 for side in (width, height)
    )
    right, bottom = cache_size - left - width, cache_size - top - height
    return np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")


def crop_and_normalise(images: Tensor, image_size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Turn packed images into the evaluation pixels.

    Of images framed "crop" they equal torchvision's `Resize → CenterCrop → ToTensor → Normalize`
    to within rounding.

    Args:
        images: uint8 [N, cache_size, cache_size, 3], as `fit` makes them.
        image_size: side in pixels of the central square that is kept.
        dtype: of the result; None is float32. The arithmetic is float32 always.

    Returns:
        [N, 3, image_size, image_size] of `dtype`, channels_last, on the device of `images`.

    Raises:
        ValueError: the crop is larger than the images.
    """
    import torch

    count, cache_size = images.shape[:2]
    if not 1 <= image_size <= cache_size:
        raise ValueError(f"1 <= image_size <= {cache_size} must hold, but got {image_size}")
    start = _centre(cache_size, image_size)
    crop = images[:, start : start + image_size, start : start + image_size]
    # Constants as long as a row of pixels vectorise; three of them, one a colour, would not.
    scale, shift = _row_constants(image_size, images.device)
    rows = crop.reshape(count, image_size, image_size * 3).to(torch.float32).mul_(scale).sub_(shift)
    return rows.view(count, image_size, image_size, 3).permute(0, 3, 1, 2).to(dtype=dtype)


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Some images of a table, read as they are asked for: together they may exceed the memory.

    Attributes:
        table: uint8 [N, S, S, 3].
        rows: int64 [n], where these images lie in it.
    """

    table: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Return some of them, given by their places among these: uint8 [m, S, S, 3]."""
        return self.table[self.rows[which]]


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor over an array's own memory, though the array is read-only.

    What `ray.get` returns is read-only, and `torch.from_numpy` warns of that. Never write to it.
    """
    import torch

    return torch.utils.dlpack.from_dlpack(array)


def _centre(length: int, kept: int) -> int:
    """Return where `kept` pixels start in the middle of `length`, rounded as torchvision does."""
    return round((length - kept) / 2)


@lru_cache(maxsize=8)
def _row_constants(image_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what a row of interleaved uint8 colours is multiplied by, then lessened by."""
    import torch

    mean, std = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    scale, shift = 1 / (255 * std), mean / std
    return (
        scale.float().repeat(image_size).to(device),
        shift.float().repeat(image_size).to(device),
    )


_ORIENTATION_TAG = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata takes nothing from the pixels
        return image
    # Anything may stand in a file: a list would break the look-up.
    method = _TO_UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale wide grey values to [0, 255].

    White is 65535 in integers and 1 in fractions (or 255, where values exceed 1). Values outside
    that are stretched between their own lowest and highest; what is no number is black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    if image.mode == "F":
        high = 1.0 if values.max() <= 1.0 else 255.0
    if not (low <= values.min() and values.max() <= high):
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _name_of(path_or_file: ImageSource) -> str:
    if isinstance(path_or_file, str | PathLike):
        return str(path_or_file)
    return str(getattr(path_or_file, "name", "the image"))


def _reason(error: Exception, path_or_file: ImageSource) -> str:
    """Say in words what kept a file from being read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if _is_empty(path_or_file):
        return "is empty (zero bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image, or of a format that cannot be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels: {error}"
    if "truncated" in str(error).lower():
        return f"is cut short: {error}"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def _is_empty(path_or_file: ImageSource) -> bool:
    if isinstance(path_or_file, str | PathLike):
        return Path(path_or_file).stat().st_size == 0
    path_or_file.seek(0)
    return not path_or_file.read(1)
