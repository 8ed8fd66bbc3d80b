"""Split and pack: pictures become one shared uint8 table. What there is to pack, `listing` finds.

Splitting looks at names alone. Packing decodes every picture once, in Ray tasks, into one array of
the object store.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from search.layout import DataError as DataError
from search.listing import Listing as Listing
from search.listing import Problem as Problem
from search.listing import check_counts as check_counts
from search.listing import deal
from search.listing import scan as scan
from search.listing import scan_external as scan_external
from trainables.images import PictureError, fit, read_picture
from trainables.images import as_tensor as as_tensor


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


def split(
    listing: Listing,
    kept: np.ndarray,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int = 2,
) -> np.ndarray:
    """Divide pictures into train, val and test, class by class.

    An official split stays. What is drawn depends on the seed and the pictures' names alone: the
    same files give the same split wherever their folder lies, and one more file moves few others.

    Args:
        listing: the pictures.
        kept: int64 indices of those to divide.
        val_fraction: share for validation, of the pictures outside the test split.
        test_fraction: share for the test.
        seed: of the draw.
        folds: pictures of each class that the drawn test split leaves at least.

    Returns:
        [len(kept)] of "train", "val" or "test". A class of three or more pictures has each.
    """
    result = np.array([listing.splits[i] or "train" for i in kept], dtype="<U5")
    draws_test, draws_val = (split not in listing.splits for split in ("test", "val"))
    order = deal([listing.names[i] for i in kept], seed, "split")
    labels = listing.labels[kept]
    for label in range(len(listing.classes)):
        members = order[labels[order] == label]
        free = members[result[members] == "train"]
        if draws_test:
            most = min(max(len(members) - folds, 1), len(free) - (2 if draws_val else 1))
            n_test = _share(test_fraction, len(members), most)
            result[free[:n_test]] = "test"
            free = free[n_test:]
        if draws_val:
            result[free[: _share(val_fraction, len(free), len(free) - 1)]] = "val"
    return result


def pack(
    listing: Listing,
    packed_size: int,
    on_progress: Callable[[int, int], None],
    image_size: int | None = None,
    block_size: int | None = None,
    budget_bytes: int | None = None,
    overflow: Path | None = None,
) -> Packed:
    """Decode all pictures, in parallel, into one table of the object store. Ray must be running.

    Args:
        listing: the pictures.
        packed_size: side of the table's squares, in pixels.
        on_progress: called with the number of pictures done and of all, also at the start.
        image_size: side in pixels of the evaluation crop, see `trainables.images.fit`.
        block_size: pictures a task; None chooses.
        budget_bytes: what the object store can spare for them; None is no bound.
        overflow: the file that holds a larger table, mapped by all; needed with a budget.

    Returns:
        The table, with what could not be read left out and named.
    """
    total = len(listing.names)
    resources: dict[str, float] = ray.cluster_resources()
    n_cpus = max(1, int(resources.get("CPU", 1)))
    block_size = block_size or _block_size(total, n_cpus, in_files=listing.paths is not None)
    submit = _block_tasks(listing, packed_size, image_size, block_size)
    # The blocks are gathered here while others are still being decoded; so the object store holds
    # few of them at a time, and the table once, in one piece.
    shape = (total, packed_size, packed_size, 3)
    mapped = None
    if overflow is not None and budget_bytes is not None and np.prod(shape) > budget_bytes:
        overflow.parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(overflow, "w+", np.uint8, shape)
    table = np.empty(shape, np.uint8) if mapped is None else mapped
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
        block, failed = ray.get(ready)
        table[start : start + len(block)] = block
        reasons |= {start + row: reason for row, reason in failed.items()}
        done += len(block)
        on_progress(done, total)
    kept = np.array([i for i in range(total) if i not in reasons], dtype=np.int64)
    for row, index in enumerate(kept):
        if row != index:  # close the gaps in place: a second table might not fit
            table[row] = table[index]
    unreadable = [Problem(listing.names[i], "unreadable", reason) for i, reason in reasons.items()]
    problems = sorted((*unreadable, *listing.skipped), key=lambda problem: problem.name)
    if mapped is not None and overflow is not None:
        mapped.flush()
        return Packed(overflow, kept, tuple(problems))
    return Packed(ray.put(table[: len(kept)]), kept, tuple(problems))


def write_split_csv(
    path: Path, listing: Listing, kept: np.ndarray, splits: Sequence[str] | np.ndarray
) -> None:
    """Write each kept picture's name, class and split."""
    rows = (
        (listing.names[i], listing.classes[listing.labels[i]], str(part))
        for i, part in zip(kept, splits, strict=True)
    )
    _write_csv(path, ("name", "label", "split"), rows)


def write_audit_csv(path: Path, problems: Iterable[Problem]) -> None:
    """Write what the audit found."""
    rows = ((problem.name, problem.kind, problem.detail) for problem in problems)
    _write_csv(path, ("name", "problem", "detail"), rows)


Block = tuple[np.ndarray, dict[int, str]]
"""uint8 [n, S, S, 3], and by row why a picture of it could not be read."""


def _block_tasks(
    listing: Listing, packed_size: int, image_size: int | None, block_size: int
) -> Callable[[int], ray.ObjectRef[Block]]:
    """Return what submits the task that decodes the block beginning at a picture's index."""
    if listing.images is not None:
        resize, images = ray.remote(_resize_arrays), ray.put(listing.images)
        return lambda start: resize.remote(images, start, block_size, packed_size, image_size)
    decode, paths = ray.remote(_decode_files), listing.paths or ()
    return lambda start: decode.remote(paths[start : start + block_size], packed_size, image_size)


def _decode_files(paths: Sequence[Path], packed_size: int, image_size: int | None) -> Block:
    # The path must lead to the file on every node. `read_picture` takes open files as well, should
    # a cluster without a shared disk one day send their bytes.
    block = np.zeros((len(paths), packed_size, packed_size, 3), np.uint8)
    reasons: dict[int, str] = {}
    for row, path in enumerate(paths):
        try:
            block[row] = fit(read_picture(path), packed_size, image_size)
        except PictureError as error:
            reasons[row] = error.reason
    return block, reasons


def _resize_arrays(
    images: np.ndarray, start: int, block_size: int, packed_size: int, image_size: int | None
) -> Block:
    pictures = (Image.fromarray(x).convert("RGB") for x in images[start : start + block_size])
    return np.stack([fit(picture, packed_size, image_size) for picture in pictures]), {}


def _block_size(n_pictures: int, n_cpus: int, in_files: bool) -> int:
    """Choose blocks small enough to keep all CPUs busy to the end, and progress smooth.

    A task costs about a millisecond: as much as decoding a picture, or resizing 20 small arrays.
    """
    least, most = (4, 64) if in_files else (64, 1024)
    return min(max(n_pictures // (16 * n_cpus), least), most)


def _share(fraction: float, count: int, most: int) -> int:
    """Return the nearest whole share of `count`, at least one, if `most` allows."""
    return max(0, min(max(1, round(fraction * count)), most))


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    # A file's name may hold bytes that are no UTF-8; they are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
