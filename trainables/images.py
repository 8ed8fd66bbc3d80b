"""Read image files, resize them to squares, and crop those for a backbone.

Training, `search.predict` and the exported models get their pixels from here, so that they agree;
the module is long to have the whole way from file to pixels in one place. PyTorch is imported where
it is used, which saves a second in processes that only decode.
"""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from spaces.errors import SearchError
from trainables.image_formats import (
    HEAD_BYTES,
    PILLOW_FORMATS,
    SPECIAL_FILE,
    heic_reason,
    is_heic,
    is_raw_tiff,
    raw_reason,
    unsupported_content,
    unsupported_suffix,
)
from trainables.levels import DEFAULT_LEVELS, Extremes, Levels, blocks, to_8_bits

if TYPE_CHECKING:
    from torch import Tensor

    from spaces.rules import ResizeMode

MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue, of values in [0, 1], which most networks subtract."""
STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue, of values in [0, 1]."""

ImageSource = str | PathLike[str] | IO[bytes]
"""An image file, by its path or opened for reading bytes."""

CROP_FRACTION = 0.875
"""Fraction of the shorter side that the evaluation crop keeps: 224 of 256, as in torchvision."""

MAX_SQUEEZED = 2.0
"""Largest factor by which `to_square` squeezes an image's longer side before it pads the rest.

Photos of 4:3 and 3:2 then need no padding, and a screwdriver stays long (docs/benchmarks.md)."""

MAX_FILE_BYTES = 2**30
"""Largest image file that is read; an uncompressed one of Pillow's most pixels is smaller."""

MAX_SIDE = 2**16 - 1
"""Longest side in pixels of an image that is read, as JPEG has it: what resizing takes grows with
the sides, not with the area alone."""

_MAX_ASPECT_RATIO = 64
"""Above it only the crop itself is resized: a strip of 1 × 10,000 pixels, resized to a shorter side
of 256, would take gigabytes."""

# What Pillow warns of (damaged metadata, very many pixels) does not keep an image from being read.
# A filter that is set once is thread-safe; `warnings.catch_warnings` is not.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def pixel_limit(megapixels: int | None) -> Iterator[None]:
    """Set how many million pixels an image may have within the block, in this whole process.

    Pillow refuses larger ones before it decodes them, also an image inside a file: a small file can
    hold one that takes all memory. Its own limit is 178,956,970 pixels.

    Args:
        megapixels: The limit; None leaves the one that holds.
    """
    before = Image.MAX_IMAGE_PIXELS
    if megapixels is not None:
        Image.MAX_IMAGE_PIXELS = megapixels * 500_000  # it refuses twice this number
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


class ImageError(SearchError):
    """An image file cannot be read.

    Attributes:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path_or_file: ImageSource, levels: Levels = DEFAULT_LEVELS) -> Image.Image:
    """Read an image file as 8-bit RGB, with its EXIF orientation applied.

    Of an animation the first frame is read, of a document the first page. Transparent pixels are
    blended with white, and colour profiles are ignored, as torchvision does.

    Args:
        path_or_file: The file.
        levels: Black and white of images of more than 8 bits.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, of an unknown format, no regular
            file, or too large to be decoded safely.
    """
    return measure_image(path_or_file, levels)[0]


def measure_image(
    path_or_file: ImageSource, levels: Levels = DEFAULT_LEVELS
) -> tuple[Image.Image, Extremes | None]:
    """Read an image file as `read_image` does; return also its extremes, if it has over 8 bits."""
    try:
        if not isinstance(path_or_file, str | PathLike):
            with _open(path_or_file) as image:
                return _load(image, levels)
        if reason := unsupported_suffix(str(path_or_file)):
            raise _UnsupportedError(reason)
        with open_image_file(path_or_file) as file, _open(file) as image:
            return _load(image, levels)
    # Pillow's readers raise nearly anything on damaged bytes: SyntaxError, struct.error, KeyError…
    except Exception as error:
        raise ImageError(_name_of(path_or_file), _reason(error, path_or_file)) from error


def read_header(path: Path) -> tuple[tuple[int, int], bool]:
    """Read width and height of an image file, and whether it can be in colour; nothing is decoded.

    Raises:
        ImageError: as in `read_image`, except for damage behind the header.
    """
    try:
        with open_image_file(path) as file, _open(file) as image:
            return image.size, image.mode not in ("1", "L", "LA", "I", "I;16", "F")
    except Exception as error:  # as above
        raise ImageError(str(path), _reason(error, path)) from error


def to_rgb(image: Image.Image, levels: Levels = DEFAULT_LEVELS) -> Image.Image:
    """Load an image's pixels as 8-bit RGB, as `read_image` does those of a file."""
    return _load(image, levels)[0]


def _load(image: Image.Image, levels: Levels) -> tuple[Image.Image, Extremes | None]:
    pixels, extremes = to_8_bits(image, levels)
    method = _to_upright(image)
    return _as_rgb(pixels if method is None else pixels.transpose(method)), extremes


class _UnsupportedError(Exception):
    """A file is of a known format that cannot be read; the message says which, and the way out."""


def open_image_file(path: str | PathLike[str]) -> IO[bytes]:
    """Open a file whose first bytes may be read: a pipe would block, and a film is not read whole.

    Raises:
        OSError: it cannot be opened.
        ImageError: it is no regular file, or has more than `MAX_FILE_BYTES` bytes.
    """
    found = Path(path).stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(str(path), SPECIAL_FILE)
    if found.st_size > MAX_FILE_BYTES:
        raise ImageError(
            str(path),
            f"is larger than an image file may be: {found.st_size / 2**30:.1f} GiB, and"
            f" {MAX_FILE_BYTES / 2**30:.0f} GiB is the most",
        )
    return Path(path).open("rb")


@contextmanager
def _open(file: IO[bytes]) -> Iterator[Image.Image]:
    """Open an image whose pixels are not read yet."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    formats: tuple[str, ...] = PILLOW_FORMATS
    if is_heic(head):
        if reason := heic_reason():
            raise _UnsupportedError(reason)
        formats = ("HEIF",)
    try:
        opened = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        if reason := unsupported_content(head):
            raise _UnsupportedError(reason) from None
        raise
    with opened as image:
        if image.format == "TIFF" and is_raw_tiff(getattr(image, "tag_v2", None)):
            raise _UnsupportedError(raw_reason())
        if max(image.size) > MAX_SIDE:
            raise _UnsupportedError(
                f"has a side of {max(image.size):,} pixels, and {MAX_SIDE:,} are the most"
            )
        yield image


def to_square(
    image: Image.Image,
    cache_size: int,
    image_size: int | None = None,
    resize_mode: ResizeMode = "crop",
) -> np.ndarray:
    """Resize an image to a square of `cache_size`.

    With "pad", the evaluation crop contains the whole image: its longer side is squeezed towards
    the shorter one, by a factor of `MAX_SQUEEZED` at most, and the outermost pixels are repeated
    up to the edges. With "crop", the shorter side is resized to `cache_size` and the square in the
    middle is cut out: its pixels are those of torchvision's `Resize(cache_size)`, and it is placed
    so that `crop_pixels` cuts out exactly the pixels of `CenterCrop(image_size)`.

    Args:
        image: An RGB image.
        cache_size: Side of the square, in pixels.
        image_size: Side in pixels of the evaluation crop that will be cut out of it; None is
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
    resized_long = int(cache_size * long / short)  # torchvision's rounding
    # CenterCrop rounds its offset within the resized image. Rounding for the square and again for
    # the crop inside it would often be off by a pixel.
    offset = _center_offset(resized_long, image_size) - _center_offset(cache_size, image_size)
    left, top = (offset, 0) if width >= height else (0, offset)
    square = (cache_size, cache_size)
    if long > _MAX_ASPECT_RATIO * short:
        scale = long / resized_long
        start, stop = offset * scale, (offset + cache_size) * scale
        box = (start, 0, stop, height) if width >= height else (0, start, width, stop)
        return np.asarray(image.resize(square, Image.Resampling.BILINEAR, box=box))
    resized = (resized_long, cache_size) if width >= height else (cache_size, resized_long)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    if resized != square:
        image = image.crop((left, top, left + cache_size, top + cache_size))
    return np.asarray(image)


def _pad_to_square(image: Image.Image, cache_size: int, image_size: int) -> np.ndarray:
    longer = max(image.size)
    width, height = (
        max(1, round(image_size * min(1.0, MAX_SQUEEZED * side / longer))) for side in image.size
    )
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    # Centred in the evaluation crop, which `crop_pixels` cuts out of the square.
    start = _center_offset(cache_size, image_size)
    left, top = (start + (image_size - side) // 2 for side in (width, height))
    right, bottom = cache_size - left - width, cache_size - top - height
    return np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")


def evaluation_crop(images: Tensor, image_size: int) -> Tensor:
    """Cut the central square out of images: [N, S, S, 3] → [N, image_size, image_size, 3].

    Raises:
        ValueError: the crop is larger than the images.
    """
    cache_size = images.shape[1]
    if not 1 <= image_size <= cache_size:
        raise ValueError(f"1 <= image_size <= {cache_size} must hold, but got {image_size}")
    start = _center_offset(cache_size, image_size)
    return images[:, start : start + image_size, start : start + image_size]


def crop_pixels(images: Tensor, image_size: int) -> Tensor:
    """Cut out the evaluation crop of images, for a backbone, which normalises it.

    For images resized with "crop" the result equals torchvision's
    `Resize → CenterCrop → ToTensor` to within rounding.

    Args:
        images: uint8 [N, cache_size, cache_size, 3], from `to_square`.
        image_size: Side in pixels of the crop.

    Returns:
        float32 [N, 3, image_size, image_size] in [0, 1], channels_last, on the device of `images`.

    Raises:
        ValueError: the crop is larger than the images.
    """
    import torch

    crop = evaluation_crop(images, image_size)
    rows = crop.to(torch.float32, memory_format=torch.contiguous_format)
    return rows.div_(255).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class ImageRows:
    """A selection of rows of an image table that is read only when it is indexed.

    Attributes:
        table: uint8 [N, S, S, 3], which may be larger than the memory.
        rows: int64 [n], the selected rows.
    """

    table: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Return the images at some positions of the selection: uint8 [m, S, S, 3]."""
        return self.table[self.rows[index]]


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor on an array's own memory, even if the array is read-only.

    Arrays from `ray.get` are read-only, and `torch.from_numpy` warns of that. Never write to the
    tensor.
    """
    import torch

    return torch.utils.dlpack.from_dlpack(array)


def _center_offset(length: int, crop: int) -> int:
    """Return where a centred crop starts, rounded as torchvision's `CenterCrop` does."""
    return round((length - crop) / 2)


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


def _to_upright(image: Image.Image) -> Image.Transpose | None:
    """Return how an image whose pixels are loaded is turned upright, by its EXIF data."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # the pixels may be intact though the metadata is damaged
        return None
    # A damaged tag may be of any type, and a list could not be looked up.
    return _TO_UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _as_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    result = Image.new("RGB", image.size)
    for top, block in blocks(image):
        white = Image.new("RGBA", block.size, "white")
        opaque = Image.alpha_composite(white, block.convert("RGBA"))
        result.paste(opaque.convert("RGB"), (0, top))
    return result


def _name_of(path_or_file: ImageSource) -> str:
    if isinstance(path_or_file, str | PathLike):
        return str(path_or_file)
    return str(getattr(path_or_file, "name", "the image"))


def _reason(error: Exception, path_or_file: ImageSource) -> str:
    """Describe why a file could not be read."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, _UnsupportedError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, OSError) and error.strerror:  # of the file system, not of Pillow
        return f"cannot be read: {error.strerror}"
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "is no path of a file"
    if _is_empty(path_or_file):
        return "is empty (zero bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image, or of a format that cannot be read"
    if isinstance(error, Image.DecompressionBombError):
        numbers = [f"{int(number):,}" for number in re.findall(r"\d+", str(error))]
        if len(numbers) != 2:  # it says "Image size (N pixels) exceeds limit of N pixels …"
            return f"has too many pixels: {error}"
        return (
            f"has too many pixels: {numbers[0]}, and {numbers[1]} are the most (--max-megapixels)"
        )
    if "truncated" in str(error).lower():
        return f"is cut short: {error}"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def _is_empty(path_or_file: ImageSource) -> bool:
    if isinstance(path_or_file, str | PathLike):
        return Path(path_or_file).stat().st_size == 0
    path_or_file.seek(0)
    return not path_or_file.read(1)
