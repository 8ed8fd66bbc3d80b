"""Measure the audit of very many images: time, memory, and recall of near-duplicates.

    python -m benchmarks.data.audit [--quick] [--data DIR]

Two sets: all of Fashion-MNIST, and 100,000 tiles cropped from photos, which differ as much as
photos do. Among them are 1,000 planted copies, changed as in near_duplicates.py (of images as small
as Fashion-MNIST's, only nearly unchanged copies count). A false match is a tile in a group with a
tile of another photo. Thumbnails are computed during decoding, on all cores, and are not timed; the
rest runs in one process, and ends with the split and the folds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data.near_duplicates import CHANGES, PHOTOS, make_thumbnails
from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from benchmarks.harness.workbench import need_data
from search.data.audit import audit_images
from search.data.decoding import DecodedImages
from search.data.manifest import Manifest
from search.data.near_duplicates import find_near_duplicates, groups_of
from search.data.splits import split
from search.data.thumbnails import SIDE, Thumbnails
from spaces.sources import Arrays, fashion_mnist
from trainables.grouped_kfold import grouped_folds
from trainables.image_formats import IMAGE_SUFFIXES
from trainables.images import read_image

_SIZES = {"full": (100_000, 1000), "quick": (10_000, 300), "smoke": (300, 30)}
"""Images, and planted copies."""
_GRIDS = (2, 3, 4, 5, 6)
_MIN_CONTRAST = 12.0  # levels of 255: tiles of sky look all alike
_SLIGHT = ("JPEG quality 50", "PNG to JPEG", "brightness ± 20%", "contrast ± 30%", "grayscale")


def main() -> int:
    """Measure, print a table, and keep it as JSON."""
    arguments = command_line(__doc__ or "", data=True).parse_args()
    n, n_copies = _SIZES[arguments.mode]
    report = Report("audit", "The audit of very many images.")
    rows = []
    if arguments.mode == "smoke":
        rows.append(_measure("noise", *_noise(n, n_copies)))
    else:
        data = need_data(arguments)
        rows.append(_measure("Fashion-MNIST", *_small(data, n, n_copies)))
        rows.append(_measure("tiles of photos", *_tiles(data, n, n_copies)))
    report.tables["by set"] = rows
    report.ratios = [
        Ratio(f"seconds per 1,000 images, {row['set']}", row["audit, s"] / row["images"] * 1000)
        for row in rows
    ]
    for row in rows:
        if row["set"] == "tiles of photos":
            report.ratios += [
                Ratio(f"recall among tiles from {SIDE} px", row[f"recall from {SIDE} px"], 0.95),
                Ratio("false matches per 1,000 tiles", row["false matches per 1,000"], 1.0, False),
            ]
    report.publish(arguments)
    return 0


def _measure(
    name: str, thumbnails: Thumbnails, origin: np.ndarray, copy_of: np.ndarray
) -> dict[str, Any]:
    """Audit a set whose last images are copies.

    Args:
        name: Name of the image set.
        thumbnails: Thumbnails of all images.
        origin: int64 [n], the photo that each was cropped from; -1 is unknown.
        copy_of: int64 [m], the originals of the last m images.
    """
    n = len(thumbnails)
    log_progress(f"{name}: {n:,} images")
    labels = np.random.default_rng(1).integers(0, 10, n)
    labels[n - len(copy_of) :] = labels[copy_of]
    manifest = Manifest(
        classes=tuple("abcdefghij"),
        names=tuple(f"{row:06}" for row in range(n)),
        labels=labels,
        splits=(None,) * n,
        paths=None,
        images=thumbnails.pixels,
    )
    images = DecodedImages(
        manifest, np.arange(n), np.zeros((n, 0, 0, 3), np.uint8), thumbnails, manifest.names, ()
    )
    before = _peak_megabytes(reset=True)
    started = time.perf_counter()
    groups = audit_images(images, None, flip=True).groups
    audited = time.perf_counter()
    parts = split(manifest, images.indices, 0.2, 0.2, 0, 5, groups)
    rows = np.flatnonzero(parts != "test")
    grouped_folds(labels[rows], groups[rows], 5, 0)
    ended = time.perf_counter()
    copies = np.arange(n - len(copy_of), n)
    found = groups[copies] == groups[copy_of]
    large = thumbnails.sizes[copies].min(1) >= SIDE
    n_false = int(((origin != origin[groups]) & (origin >= 0)).sum())
    return {
        "set": name,
        "images": n,
        "audit, s": ended - started,
        "of which split and folds, s": ended - audited,
        "memory added, MB": _peak_megabytes() - before,
        "in groups": int((np.bincount(groups)[groups] > 1).sum()),
        "recall": float(found.mean()),
        f"recall from {SIDE} px": float(found[large].mean()) if large.any() else float("nan"),
        "false matches per 1,000": 1000 * n_false / n,
    }


def _peak_megabytes(reset: bool = False) -> float:
    """Return the peak resident memory of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _small(data: Path, n: int, n_copies: int) -> tuple[Thumbnails, np.ndarray, np.ndarray]:
    """Make thumbnails of Fashion-MNIST, and of copies of some images."""
    source = fashion_mnist().open(data, data)
    if not isinstance(source, Arrays):
        raise TypeError("Fashion-MNIST is read as arrays")
    images = [Image.fromarray(x).convert("RGB") for x in source.images[:n]]
    rng = np.random.default_rng(0)
    copy_of = rng.permutation(len(images))[:n_copies]
    for place, row in enumerate(copy_of.tolist()):
        images.append(CHANGES[_SLIGHT[place % len(_SLIGHT)]](images[row], rng))
    return make_thumbnails(images), np.full(len(images), -1), copy_of


def _tiles(data: Path, n: int, n_copies: int) -> tuple[Thumbnails, np.ndarray, np.ndarray]:
    """Make thumbnails of tiles of all photos, in random order, and of copies of some tiles."""
    rng = np.random.default_rng(0)
    photos = list(_photos(data))
    photo_groups = groups_of(
        len(photos), find_near_duplicates(make_thumbnails(photos), flip=True).pairs
    )
    places = [
        (photo, grid, x, y)
        for photo, image in enumerate(photos)
        for grid in _GRIDS
        if min(image.size) // grid >= SIDE
        for x in range(grid)
        for y in range(grid)
    ]
    thumbnails = Thumbnails.empty(n + n_copies)
    origin = np.empty(n + n_copies, np.int64)
    done, tiles = 0, {}
    for photo, grid, x, y in (places[i] for i in rng.permutation(len(places))):
        width, height = (side // grid for side in photos[photo].size)
        box = (x * width, y * height, (x + 1) * width, (y + 1) * height)
        tile = photos[photo].crop(box)
        thumbnails.draw(done, tile)
        if thumbnails.pixels[done].std() < _MIN_CONTRAST:
            continue
        origin[done] = photo_groups[photo]
        if done < n_copies:
            tiles[done] = tile
        done += 1
        if done == n:
            break
    # The copies follow the last tile, also where there are fewer than n.
    for place, change in enumerate(np.resize(list(CHANGES), n_copies)):
        thumbnails.draw(done + place, CHANGES[change](tiles[place], rng))
        origin[done + place] = origin[place]
    rows = np.arange(done + n_copies)
    return thumbnails.take(rows), origin[rows], np.arange(n_copies)


def _photos(data: Path) -> Iterator[Image.Image]:
    for where in PHOTOS.values():
        for path in sorted((data / where).rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield read_image(path)


def _noise(n: int, n_copies: int) -> tuple[Thumbnails, np.ndarray, np.ndarray]:
    thumbnails = Thumbnails.empty(n + n_copies)
    thumbnails.pixels[:n] = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE))
    thumbnails.pixels[n:] = thumbnails.pixels[:n_copies]
    copy_of = np.arange(n_copies)
    return thumbnails, np.concatenate([np.arange(n), copy_of]), copy_of


if __name__ == "__main__":
    sys.exit(main())
