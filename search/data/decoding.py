"""Decode images, each file once: to a square of pixels, a thumbnail for the audit, and a digest.

`read_images` is the one reader of images: a run, `search.audit` and the checks of an exported model
decode through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, file_digest
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from search.cluster.parallel import ParallelMap
from search.data.manifest import Issue, Manifest
from search.data.thumbnails import Thumbnails
from spaces.rules import ResizeMode
from trainables.images import ImageError, measure_image, read_header, to_square
from trainables.levels import DEFAULT_LEVELS, Extremes, Levels, set_levels

_N_HEADERS = 24
"""Images whose headers are read to know what a set is like."""
_N_READERS = 8
"""Threads that read the files that are sent: a network folder answers several at once."""
_N_BLOCKS = 64
"""Blocks that images are divided into at least, to keep all CPUs busy until the end."""
_FILES_PER_BLOCK = (4, 64)
_ARRAYS_PER_BLOCK = (64, 1024)
"""Bounds of a block. A Ray task costs a millisecond, as much as decoding one file or resizing 20
small arrays."""


class ReadImage(NamedTuple):
    """An image that was read, or the reason why it could not be.

    Attributes:
        position: Its position among the contents that were to be read.
        image: The RGB image, or the error.
        digest: Digest of the file's bytes or the array's pixels; "" where the file is unreadable.
        extremes: Lowest and highest level of an image of more than 8 bits; None of others.
    """

    position: int
    image: Image.Image | ImageError
    digest: str
    extremes: Extremes | None = None


def read_images(
    contents: Iterable[Path | bytes | np.ndarray | ImageError], levels: Levels = DEFAULT_LEVELS
) -> Iterator[ReadImage]:
    """Read images from files, from the bytes of files, or from uint8 [H, W] or [H, W, 3] arrays.

    A file whose first bytes are of no image is not read further. An error, of a file that could not
    be read before, stays as it is.

    Args:
        contents: The images.
        levels: Black and white of those of more than 8 bits.
    """
    for position, content in enumerate(contents):
        if isinstance(content, np.ndarray):
            image = Image.fromarray(content).convert("RGB")
            yield ReadImage(position, image, image_digest(content.tobytes()))
            continue
        try:
            if isinstance(content, ImageError):
                raise content
            file = BytesIO(content) if isinstance(content, bytes) else content
            image, extremes = measure_image(file, levels)
            digest = image_digest(content)
        except ImageError as error:
            yield ReadImage(position, error, "")
        else:
            yield ReadImage(position, image, digest, extremes)


def read_headers(paths: Sequence[Path]) -> list[tuple[tuple[int, int], bool]]:
    """Read the headers of a few images, evenly spread; files that cannot be read are skipped.

    Returns:
        Of each image, its width and height, and whether it can be in colour.
    """
    headers = []
    for path in paths[:: max(1, len(paths) // _N_HEADERS)]:
        with suppress(ImageError):
            headers.append(read_header(path))
    return headers


def image_digest(content: bytes | Path) -> str:
    """Compute the digest of an image file, of its bytes, or of the pixels of an array."""
    if isinstance(content, bytes):
        return _new_digest(content).hexdigest()
    with content.open("rb") as file:
        return file_digest(file, _new_digest).hexdigest()


def _new_digest(content: bytes = b"") -> blake2b:
    return blake2b(content, digest_size=8)


def _read_file(path: Path) -> bytes | ImageError:
    """Return the bytes of an image file, or why it cannot be read."""
    try:
        read_header(path)
        return path.read_bytes()
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(str(path), f"cannot be read: {error.strerror}")


class ResizeSpec(NamedTuple):
    """How images become squares: the arguments of `trainables.images.to_square`."""

    cache_size: int
    image_size: int | None = None
    resize_mode: ResizeMode = "crop"


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """The n images of a manifest that could be decoded.

    Attributes:
        manifest: All images that were to be decoded.
        indices: int64 [n], ascending: the index in the manifest of each decoded image.
        pixels: uint8 [n, S, S, 3], in memory or mapped from a file; S is 0 without a `ResizeSpec`.
        thumbnails: Thumbnail of each decoded image.
        digests: Digest of each decoded image; equal contents have equal digests.
        issues: The files that could not be used, by name.
        levels: Black and white of the images of more than 8 bits.
        extremes: By row, lowest and highest level of these images.
    """

    manifest: Manifest
    indices: np.ndarray
    pixels: np.ndarray
    thumbnails: Thumbnails
    digests: tuple[str, ...]
    issues: tuple[Issue, ...]
    levels: Levels = DEFAULT_LEVELS
    extremes: Mapping[int, Extremes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the decoded images."""
        return tuple(self.manifest.names[i] for i in self.indices)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [n], labels of the decoded images."""
        return np.asarray(self.manifest.labels[self.indices])


def decode_images(
    manifest: Manifest,
    resize: ResizeSpec | None,
    parallel_map: ParallelMap,
    on_progress: Callable[[int], None] = lambda n_done: None,
    *,
    mapped_file: Path | None = None,
    send_files: bool = False,
    block_size: int | None = None,
    levels: Levels | None = None,
) -> DecodedImages:
    """Decode all images of a manifest, a block of them in each call of `parallel_map`.

    Black and white of images of more than 8 bits are known when all are decoded; if they are not
    the usual ones, these images are decoded a second time.

    Args:
        manifest: The images.
        resize: Size and resize mode of the squares; None makes none, for the audit alone.
        parallel_map: Runs the blocks.
        on_progress: Called with the number of images decoded so far.
        mapped_file: Where the squares are stored and mapped from; None keeps them in memory.
        send_files: Whether to read the files here and send their bytes to the workers, which may
            not have them: on a cluster.
        block_size: Images in a block; None chooses.
        levels: Black and white of images of more than 8 bits; None: those of this set, of its
            images that are not in an official test split.
    """
    n = len(manifest.names)
    size = block_size or _block_size(n, in_files=manifest.images is None)
    pixels = _allocate(n, 0 if resize is None else resize.cache_size, mapped_file)
    thumbnails = Thumbnails.empty(n)
    digests: list[str] = []
    errors: dict[int, str] = {}
    on_progress(0)
    extremes: dict[int, Extremes] = {}
    known = levels or DEFAULT_LEVELS
    for block in parallel_map(
        _decode_block, (resize, known, Image.MAX_IMAGE_PIXELS), _blocks(manifest, size, send_files)
    ):
        start = len(digests)
        pixels[start : start + len(block.digests)] = block.pixels
        thumbnails.put(start, block.thumbnails)
        errors |= {start + row: reason for row, reason in block.errors.items()}
        extremes |= {start + row: found for row, found in block.extremes.items()}
        digests += block.digests
        on_progress(len(digests))
    if levels is None:
        known = set_levels(one for i, one in extremes.items() if manifest.splits[i] != "test")
    rows = [i for i, one in extremes.items() if levels is None and known != DEFAULT_LEVELS]
    again = _blocks(manifest.take(np.array(rows, np.int64)), size, send_files)
    for block in parallel_map(_decode_block, (resize, known, Image.MAX_IMAGE_PIXELS), again):
        block_rows, rows = rows[: len(block.digests)], rows[len(block.digests) :]
        pixels[block_rows] = block.pixels
        thumbnails.put(block_rows, block.thumbnails)
        errors |= {block_rows[row]: reason for row, reason in block.errors.items()}
    indices = np.array([i for i in range(n) if i not in errors], dtype=np.int64)
    for row, index in enumerate(indices):
        if row != index:  # close the gaps in place: a second table might not fit
            pixels[row] = pixels[index]
    if isinstance(pixels, np.memmap):
        pixels.flush()
    issues = [Issue(manifest.names[i], "unreadable", reason) for i, reason in errors.items()]
    return DecodedImages(
        manifest,
        indices,
        pixels[: len(indices)],
        thumbnails.take(indices),
        tuple(digests[i] for i in indices),
        tuple(sorted((*issues, *manifest.skipped), key=lambda issue: issue.image)),
        known,
        {row: extremes[i] for row, i in enumerate(indices.tolist()) if i in extremes},
    )


def _allocate(n: int, side: int, mapped_file: Path | None) -> np.ndarray:
    shape = (n, side, side, 3)
    if mapped_file is None:
        return np.empty(shape, np.uint8)
    mapped_file.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(mapped_file, "w+", np.uint8, shape)


_Contents = Sequence[Path | bytes | ImageError] | np.ndarray
"""Files or their bytes, or pixels, of the images of a block, or why they cannot be read."""


class _Block(NamedTuple):
    """Decoded images of a block: reasons of those that could not be read, extremes of the deep."""

    pixels: np.ndarray
    thumbnails: Thumbnails
    digests: list[str]
    errors: dict[int, str]
    extremes: dict[int, Extremes]


def _decode_block(how: tuple[ResizeSpec | None, Levels, int | None], contents: _Contents) -> _Block:
    # The limit of the process that asks: see `trainables.images.pixel_limit`.
    resize, levels, Image.MAX_IMAGE_PIXELS = how
    n, side = len(contents), 0 if resize is None else resize.cache_size
    block = _Block(np.zeros((n, side, side, 3), np.uint8), Thumbnails.empty(n), [], {}, {})
    for row, image, digest, extremes in read_images(contents, levels):
        block.digests.append(digest)
        if isinstance(image, ImageError):
            block.errors[row] = image.reason
            continue
        if extremes is not None:
            block.extremes[row] = extremes
        block.thumbnails.draw(row, image)
        if resize is not None:
            block.pixels[row] = to_square(image, *resize)
    return block


def _blocks(manifest: Manifest, size: int, send_files: bool) -> Iterator[_Contents]:
    """Divide the images of a manifest into blocks; read their files if those are to be sent."""
    starts = range(0, len(manifest.names), size)
    if manifest.images is not None:
        yield from (manifest.images[start : start + size] for start in starts)
        return
    paths = manifest.paths or ()
    with ThreadPoolExecutor(_N_READERS) as readers:
        for start in starts:
            block = paths[start : start + size]
            yield list(readers.map(_read_file, block)) if send_files else block


def _block_size(n_images: int, in_files: bool) -> int:
    least, most = _FILES_PER_BLOCK if in_files else _ARRAYS_PER_BLOCK
    return min(max(n_images // _N_BLOCKS, least), most)
