"""Decode images that a program has at hand: paths, the bytes of files, Pillow images, arrays.

URLs are refused. A download that is safe on any machine (no address of a private network, also not
after a redirect) is a program of its own, and everybody has one.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image

from trainables.images import ImageError, read_image, to_rgb
from trainables.levels import DEFAULT_LEVELS, Levels

ImageInput = str | PathLike[str] | IO[bytes] | bytes | Image.Image | np.ndarray
"""An image: its path, an open file, a file's bytes, a Pillow image, or an array.

An array is RGB [H, W, 3], RGBA [H, W, 4] or grayscale [H, W] or [H, W, 1], of uint8 in [0, 255] or
of floats in [0, 1].
"""

# A scheme has two letters or more: one is a drive's. pathlib makes one slash of two.
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]+:/|data:)")


def is_url(text: str) -> bool:
    """Return whether a text is a URL, and not the path of a file that is there."""
    return _URL.match(text) is not None and not os.path.lexists(text)


def refuse_url(url: str) -> str:
    """Return what is wrong with a URL as an image's path, and the way out."""
    if url.startswith("data:"):
        return "is a URL, and only files are read: give the bytes that it encodes"
    return f"is a URL, and only files are read: download it first (curl -fLO {shlex.quote(url)})"


def named(images: ImageInput | Iterable[ImageInput]) -> Iterator[tuple[str, ImageInput]]:
    """Yield images with their names; one without a path is called "image N", counted from 1.

    Args:
        images: One image, or several: an iterable, such as a list or an array [N, H, W, C].
    """
    sequence = cast(Iterable[ImageInput], [images] if _is_one_image(images) else images)
    for number, image in enumerate(sequence, 1):
        yield _path_of(image) or f"image {number}", image


def _is_one_image(images: ImageInput | Iterable[ImageInput]) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim <= 3
    if isinstance(images, str | PathLike | bytes | Image.Image) or hasattr(images, "read"):
        return True
    return not isinstance(images, Iterable)  # decoding refuses it in words


def decode_input(
    image: ImageInput, name: str = "the image", levels: Levels = DEFAULT_LEVELS
) -> Image.Image:
    """Decode an image: 8-bit RGB, as `trainables.images.read_image` reads a file.

    Args:
        image: The image.
        name: What an error calls it.
        levels: Black and white of images of more than 8 bits.

    Raises:
        ImageError: it cannot be read, or is none.
    """
    try:
        if isinstance(image, Image.Image):
            return _load(image, levels)
        if isinstance(image, np.ndarray):
            return _load(_from_array(image), levels)
        if isinstance(image, bytes):
            return read_image(BytesIO(image), levels)
        if isinstance(image, str | PathLike):
            if is_url(os.fspath(image)):
                raise ImageError(name, refuse_url(os.fspath(image)))
            return read_image(image, levels)
        if hasattr(image, "read"):
            return read_image(image, levels)
    except ImageError as error:
        raise ImageError(name, error.reason) from error.__cause__
    raise ImageError(
        name,
        "must be a path, the bytes of a file, a PIL.Image or a numpy array, but is of type"
        f" {type(image).__name__}",
    )


def _path_of(image: object) -> str:
    """Return the path that an image came from; "" where there is none."""
    if isinstance(image, str | PathLike):
        return os.fspath(image)
    path = getattr(image, "filename", getattr(image, "name", ""))
    return str(path) if isinstance(path, str | Path) else ""


def _load(image: Image.Image, levels: Levels) -> Image.Image:
    if 0 in image.size:
        raise ImageError("", f"must have pixels, but has {image.width} × {image.height}")
    try:
        return to_rgb(image, levels)
    except Exception as error:  # Pillow reads the file now, and raises nearly anything
        raise ImageError("", f"cannot be decoded: {str(error) or type(error).__name__}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    shape = list(array.shape)
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = (
            ": .transpose(1, 2, 0) puts its channels last" if shape[:1] in ([1], [3], [4]) else ""
        )
        raise ImageError(
            "",
            "an array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], but its shape is"
            f" {shape}{hint}",
        )
    if 0 in shape:
        raise ImageError("", f"an array must have pixels, but its shape is {shape}")
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # nor is NaN
            raise ImageError(
                "", f"an array of floats must be in [0, 1], but has values from {low:g} to {high:g}"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(
            "", f"an array must be of uint8 or of floats in [0, 1], but is of {array.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(array))
