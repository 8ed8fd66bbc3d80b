"""Pack: pictures become one shared uint8 table. What there is to pack, `listing` finds.

Every picture is decoded once, in Ray tasks, into one array of the object store, and sketched for
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
from search.data.manifest import Listing, Problem
from search.data.thumbnails import Sketches
from spaces.base import Framing
from trainables.images import PictureError, fit, read_picture


@dataclass(frozen=True, eq=False)
class Packed:
    """The pictures that could be read, decoded."""

    table: ray.ObjectRef[np.ndarray] | Path
    """One uint8 array [≥ len(kept), S, S, 3], read by all of a node without a copy: in the object
    store, or, where that is too small, in a file that is mapped."""
    kept: np.ndarray
    """int64, ascending: the index in the listing of each picture of the table."""
    problems: tuple[Problem, ...]
    """The files left out, in the order of their names."""
    sketches: Sketches
    """Of each picture of the table."""
    digests: tuple[str, ...]
    """Of each picture of the table, what tells its content from any other."""


def pack(
    listing: Listing,
    packed_size: int,
    on_progress: Callable[[int, int], None],
    image_size: int | None = None,
    framing: Framing = "crop",
    block_size: int | None = None,
    budget_bytes: int | None = None,
    overflow: Path | None = None,
    send_files: bool = False,
) -> Packed:
    """Decode all pictures, in parallel, into one table of the object store. Ray must be running.

    Args:
        listing: the pictures.
        packed_size: side of the table's squares, in pixels.
        on_progress: called with the number of pictures done and of all, also at the start.
        image_size: side in pixels of the evaluation crop.
        framing: what is kept of a picture that is no square, see `trainables.images.fit`.
        block_size: pictures a task; None chooses.
        budget_bytes: what the object store can spare for them; None is no bound.
        overflow: the file that holds a larger table, mapped by all; needed with a budget.
        send_files: read the files here and send their bytes to the tasks: on a cluster, the other
            machines may not have them.

    Returns:
        The table, with what could not be read left out and named.
    """
    total = len(listing.names)
    resources: dict[str, float] = ray.cluster_resources()
    n_cpus = max(1, int(resources.get("CPU", 1)))
    block_size = block_size or _block_size(total, n_cpus, in_files=listing.paths is not None)
    square = Square(packed_size, image_size, framing)
    submit = _block_tasks(listing, square, block_size, send_files)
    # The blocks are gathered here while others are still being decoded; so the object store holds
    # few of them at a time, and the table once, in one piece.
    shape = (total, packed_size, packed_size, 3)
    mapped = None
    if overflow is not None and budget_bytes is not None and np.prod(shape) > budget_bytes:
        overflow.parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(overflow, "w+", np.uint8, shape)
    table = np.empty(shape, np.uint8) if mapped is None else mapped
    sketches = Sketches.empty(total)
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
        sketches.put(start, drawn)
        digests[start : start + len(block)] = told_apart
        reasons |= {start + row: reason for row, reason in failed.items()}
        done += len(block)
        on_progress(done, total)
    kept = np.array([i for i in range(total) if i not in reasons], dtype=np.int64)
    for row, index in enumerate(kept):
        if row != index:  # close the gaps in place: a second table might not fit
            table[row] = table[index]
    unreadable = [Problem(listing.names[i], "unreadable", reason) for i, reason in reasons.items()]
    problems = tuple(sorted((*unreadable, *listing.skipped), key=lambda problem: problem.name))
    of_kept = sketches.take(kept), tuple(digests[i] for i in kept)
    if mapped is not None and overflow is not None:
        mapped.flush()
        return Packed(overflow, kept, problems, *of_kept)
    return Packed(ray.put(table[: len(kept)]), kept, problems, *of_kept)


class Square(NamedTuple):
    """What a picture becomes: the arguments of `trainables.images.fit`."""

    packed_size: int
    image_size: int | None
    framing: Framing


Block = tuple[np.ndarray, Sketches, list[str], dict[int, str]]
"""uint8 [n, S, S, 3], its sketches, its digests, and by row why a picture of it could not be read.
"""


def _block_tasks(
    listing: Listing,
    square: Square,
    block_size: int,
    send_files: bool,
) -> Callable[[int], ray.ObjectRef[Block]]:
    """Return what submits the task that decodes the block beginning at a picture's index."""
    if listing.images is not None:
        resize = ray.remote(_resize_arrays).options(scheduling_strategy=EVERYWHERE)
        images = ray.put(listing.images)
        return lambda start: resize.remote(images, start, block_size, square)
    decode = ray.remote(_decode_files).options(scheduling_strategy=EVERYWHERE)
    paths = listing.paths or ()

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


def _decode_files(files: Sequence[Path | bytes], square: Square) -> Block:
    block = np.zeros((len(files), square.packed_size, square.packed_size, 3), np.uint8)
    sketches = Sketches.empty(len(files))
    digests = [""] * len(files)
    reasons: dict[int, str] = {}
    for row, file in enumerate(files):
        content = _read_file(file) if isinstance(file, Path) else file
        try:
            picture = read_picture(BytesIO(content) if isinstance(content, bytes) else content)
        except PictureError as error:
            reasons[row] = error.reason
            continue
        block[row] = fit(picture, *square)
        sketches.draw(row, picture)
        digests[row] = "" if isinstance(content, Path) else picture_digest(content)
    return block, sketches, digests, reasons


def _resize_arrays(images: np.ndarray, start: int, block_size: int, square: Square) -> Block:
    part = images[start : start + block_size]
    block = np.empty((len(part), square.packed_size, square.packed_size, 3), np.uint8)
    sketches = Sketches.empty(len(part))
    for row, pixels in enumerate(part):
        picture = Image.fromarray(pixels).convert("RGB")
        block[row] = fit(picture, *square)
        sketches.draw(row, picture)
    return block, sketches, [picture_digest(pixels.tobytes()) for pixels in part], {}


def picture_digest(content: bytes) -> str:
    """Return what tells a picture's file, or the pixels of an array's, from any other."""
    return blake2b(content, digest_size=8).hexdigest()


def _block_size(n_pictures: int, n_cpus: int, in_files: bool) -> int:
    """Choose blocks small enough to keep all CPUs busy to the end, and progress smooth.

    A task costs about a millisecond: as much as decoding a picture, or resizing 20 small arrays.
    """
    least, most = (4, 64) if in_files else (64, 1024)
    return min(max(n_pictures // (16 * n_cpus), least), most)
