"""Pack: images become one shared uint8 table. What there is to pack, `manifest` finds.

Every image is decoded once, in Ray tasks, into one array of the object store, and sketched for
the audit on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from PIL import Image

from search.cluster.nodes import EVERYWHERE
from search.data.manifest import Manifest, Problem
from search.data.thumbnails import Thumbnails
from spaces.base import ResizeMode
from trainables.images import ImageError, read_image, to_square


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """The images that could be read, decoded."""

    table: ray.ObjectRef[np.ndarray] | Path
    """One uint8 array [≥ len(kept), S, S, 3], read by all of a node without a copy: in the object
    store, or, where that is too small, in a file that is mapped."""
    kept: np.ndarray
    """int64, ascending: the index in the listing of each image of the table."""
    problems: tuple[Problem, ...]
    """The files left out, in the order of their names."""
    thumbnails: Thumbnails
    """Of each image of the table."""
    digests: tuple[str, ...]
    """Of each image of the table, what tells its content from any other."""


def pack(
    manifest: Manifest,
    cache_size: int,
    on_progress: Callable[[int, int], None],
    image_size: int | None = None,
    resize_mode: ResizeMode = "crop",
    block_size: int | None = None,
    budget_bytes: int | None = None,
    overflow: Path | None = None,
    send_files: bool = False,
) -> DecodedImages:
    """Decode all images, in parallel, into one table of the object store. Ray must be running.

    Args:
        manifest: the images.
        cache_size: side of the table's squares, in pixels.
        on_progress: called with the number of images done and of all, also at the start.
        image_size: side in pixels of the evaluation crop.
        resize_mode: what is kept of an image that is no square, see `trainables.images.fit`.
        block_size: images a task; None chooses.
        budget_bytes: what the object store can spare for them; None is no bound.
        overflow: the file that holds a larger table, mapped by all; needed with a budget.
        send_files: read the files here and send their bytes to the tasks: on a cluster, the other
            machines may not have them.

    Returns:
        The table, with what could not be read left out and named.
    """
    total = len(manifest.names)
    resources: dict[str, float] = ray.cluster_resources()
    n_cpus = max(1, int(resources.get("CPU", 1)))
    block_size = block_size or _block_size(total, n_cpus, in_files=manifest.paths is not None)
    square = ResizeSpec(cache_size, image_size, resize_mode)
    submit = _block_tasks(manifest, square, block_size, send_files)
    # The blocks are gathered here while others are still being decoded; so the object store holds
    # few of them at a time, and the table once, in one piece.
    shape = (total, cache_size, cache_size, 3)
    mapped = None
    if overflow is not None and budget_bytes is not None and np.prod(shape) > budget_bytes:
        overflow.parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(overflow, "w+", np.uint8, shape)
    table = np.empty(shape, np.uint8) if mapped is None else mapped
    thumbnails = Thumbnails.empty(total)
    digests = [""] * total
    reasons: dict[int, str] = {}
    starts = iter(range(0, total, block_size))
    waiting: dict[ray.ObjectRef[Block], int] = {}
    done = 0
    on_progress(done, total)
    while True:
        waiting |= {submit(start): start for start in islice(starts, 4 * n_cpus - len(waiting))}
        if not waiting:
            break
        ready = ray.wait(list(waiting), num_returns=1)[0][0]
        start = waiting.pop(ready)
        block, drawn, told_apart, failed = ray.get(ready)
        table[start : start + len(block)] = block
        thumbnails.put(start, drawn)
        digests[start : start + len(block)] = told_apart
        reasons |= {start + row: reason for row, reason in failed.items()}
        done += len(block)
        on_progress(done, total)
    kept = np.array([i for i in range(total) if i not in reasons], dtype=np.int64)
    for row, index in enumerate(kept):
        if row != index:  # close the gaps in place: a second table might not fit
            table[row] = table[index]
    unreadable = [Problem(manifest.names[i], "unreadable", reason) for i, reason in reasons.items()]
    problems = tuple(sorted((*unreadable, *manifest.skipped), key=lambda problem: problem.name))
    of_kept = thumbnails.take(kept), tuple(digests[i] for i in kept)
    if mapped is not None and overflow is not None:
        mapped.flush()
        return DecodedImages(overflow, kept, problems, *of_kept)
    return DecodedImages(ray.put(table[: len(kept)]), kept, problems, *of_kept)


class ResizeSpec(NamedTuple):
    """What an image becomes: the arguments of `trainables.images.fit`."""

    cache_size: int
    image_size: int | None
    resize_mode: ResizeMode


Block = tuple[np.ndarray, Thumbnails, list[str], dict[int, str]]
"""uint8 [n, S, S, 3], its sketches, its digests, and by row why an image of it could not be read.
"""


def _block_tasks(
    manifest: Manifest,
    square: ResizeSpec,
    block_size: int,
    send_files: bool,
) -> Callable[[int], ray.ObjectRef[Block]]:
    """Return what submits the task that decodes the block beginning at an image's index."""
    if manifest.images is not None:
        resize = ray.remote(_resize_arrays).options(scheduling_strategy=EVERYWHERE)
        images = ray.put(manifest.images)
        return lambda start: resize.remote(images, start, block_size, square)
    decode = ray.remote(_decode_files).options(scheduling_strategy=EVERYWHERE)
    paths = manifest.paths or ()

    def submit(start: int) -> ray.ObjectRef[Block]:
        files: Sequence[Path | bytes] = paths[start : start + block_size]
        if send_files:
            with ThreadPoolExecutor(_READERS) as readers:
                files = list(readers.map(_read_file, paths[start : start + block_size]))
        return decode.remote(files, square)

    return submit


_READERS = 8
"""Threads that read files to be sent: a network folder answers several at a time."""


def _read_file(path: Path) -> Path | bytes:
    """Return a file's bytes; where it cannot be read, its path, whose reader says why."""
    try:
        return path.read_bytes()
    except OSError:
        return path


def _decode_files(files: Sequence[Path | bytes], square: ResizeSpec) -> Block:
    block = np.zeros((len(files), square.cache_size, square.cache_size, 3), np.uint8)
    thumbnails = Thumbnails.empty(len(files))
    digests = [""] * len(files)
    reasons: dict[int, str] = {}
    for row, file in enumerate(files):
        content = _read_file(file) if isinstance(file, Path) else file
        try:
            image = read_image(BytesIO(content) if isinstance(content, bytes) else content)
        except ImageError as error:
            reasons[row] = error.reason
            continue
        block[row] = to_square(image, *square)
        thumbnails.draw(row, image)
        digests[row] = "" if isinstance(content, Path) else image_digest(content)
    return block, thumbnails, digests, reasons


def _resize_arrays(images: np.ndarray, start: int, block_size: int, square: ResizeSpec) -> Block:
    part = images[start : start + block_size]
    block = np.empty((len(part), square.cache_size, square.cache_size, 3), np.uint8)
    thumbnails = Thumbnails.empty(len(part))
    for row, pixels in enumerate(part):
        image = Image.fromarray(pixels).convert("RGB")
        block[row] = to_square(image, *square)
        thumbnails.draw(row, image)
    return block, thumbnails, [image_digest(pixels.tobytes()) for pixels in part], {}


def image_digest(content: bytes) -> str:
    """Return what tells an image's file, or the pixels of an array's, from any other."""
    return blake2b(content, digest_size=8).hexdigest()


def _block_size(n_images: int, n_cpus: int, in_files: bool) -> int:
    """Choose blocks small enough to keep all CPUs busy to the end, and progress smooth.

    A task costs about a millisecond: as much as decoding an image, or resizing 20 small arrays.
    """
    least, most = (4, 64) if in_files else (64, 1024)
    return min(max(n_images // (16 * n_cpus), least), most)
