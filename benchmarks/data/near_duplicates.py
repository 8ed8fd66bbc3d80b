"""Measure recall and false alarms of near-duplicate detection on planted copies.

    python -m benchmarks.data.near_duplicates [--quick] [--data DIR] [--sheets DIR]

In each image set, images are copied and changed, one kind of change after another, and searched for
among the whole set and all copies of that kind. Recall is the fraction of copies that are found in
the group of their original. A false pair is one of which neither image was made from the other, and
which is not in the set itself. Real sets have real copies: `reviewed_pairs.csv` lists those pairs,
found in the sets as they are, that a person has reviewed and calls copies; any other pair counts as
a false alarm.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from benchmarks.harness.workbench import need_data
from search.data.near_duplicates import find_near_duplicates, groups_of
from search.data.thumbnails import Thumbnails
from search.runs.tables import read_rows
from spaces.sources import Arrays, digits, fashion_mnist
from trainables.image_formats import IMAGE_SUFFIXES
from trainables.images import read_image

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

PHOTOS = {
    "Caltech six": "caltech101/101_ObjectCategories",
    "cats and dogs": "cats_dogs",
    "products": "products",
    "tools": "tools",
    "external": "external/caltech6",
}
REVIEWED_PAIRS = Path(__file__).with_name("reviewed_pairs.csv")
_SIZES = {"full": (300, 10_000), "quick": (100, 4_000), "smoke": (10, 200)}
"""Copies of each kind from each set, and small images taken."""
_MAX_SHOWN = 80


@dataclass(frozen=True)
class Images:
    """A decoded image set; the targets are for sets of photos."""

    name: str
    are_photos: bool
    names: list[str]
    images: list[Image.Image]


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Encode and decode an image."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resize(image: Image.Image, fraction: float) -> Image.Image:
    """Resize both sides to a fraction."""
    size = (max(4, round(fraction * image.width)), max(4, round(fraction * image.height)))
    return image.resize(size, Image.Resampling.BICUBIC)


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Crop fractions of the sides."""
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(round(edge) for edge in box))


def crop_some(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop 5–8% of the width and of the height, divided at random between both sides."""
    across, down, x, y = *rng.uniform(0.05, 0.08, 2), *rng.random(2)
    return crop(image, across * x, down * y, across * (1 - x), down * (1 - y))


def combine(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop, resize, brighten and re-encode."""
    smaller = resize(crop(image, *rng.uniform(0.01, 0.025, 4)), 0.7)
    return as_jpeg(ImageEnhance.Brightness(smaller).enhance(rng.choice([0.85, 1.15])), 60)


def _random_sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


CHANGES: dict[str, Change] = {
    "JPEG quality 50": lambda image, rng: as_jpeg(image, 50),
    "PNG to JPEG": lambda image, rng: as_jpeg(image, 92),
    "resized to 60%": lambda image, rng: resize(image, 0.6),
    "5–8% cropped": crop_some,
    "5–8% cropped from each side": lambda image, rng: crop(image, *rng.uniform(0.05, 0.08, 4)),
    "brightness ± 20%": lambda image, rng: ImageEnhance.Brightness(image).enhance(
        1 + 0.2 * _random_sign(rng)
    ),
    "contrast ± 30%": lambda image, rng: ImageEnhance.Contrast(image).enhance(
        1 + 0.3 * _random_sign(rng)
    ),
    "rotated by 2°": lambda image, rng: image.rotate(
        2 * _random_sign(rng), Image.Resampling.BICUBIC
    ),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "turned by 90°": lambda image, rng: image.transpose(
        (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[rng.integers(2)]
    ),
    "upside down": lambda image, rng: image.transpose(
        (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)[rng.integers(2)]
    ),
    "turned by 90°, cropped, resized, brightened, re-encoded": lambda image, rng: combine(
        image.transpose(Image.Transpose.ROTATE_90), rng
    ),
    "border of 5%": lambda image, rng: ImageOps.expand(
        image,
        max(1, round(0.05 * min(image.size))),
        ("white", "black", "#808080")[rng.integers(3)],
    ),
    "grayscale": lambda image, rng: image.convert("L").convert("RGB"),
    "cropped, resized, brightened, re-encoded": combine,
}


def main() -> int:
    """Measure, and report."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument(
        "--sheets", type=Path, metavar="DIR", help="write images of the pairs found in each set"
    )
    arguments = parser.parse_args()
    n_copies, n_small = _SIZES[arguments.mode]
    report = Report("near_duplicates", "Near-duplicates found, and false alarms.")
    recalls: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for one in _sets(arguments, n_small):
        log_progress(f"{one.name}: {len(one.images)} images")
        found, row, pairs = measure(one, n_copies)
        recalls += found
        sets.append(row)
        report.extra[one.name] = [list(pair) for pair in pairs]
        if arguments.sheets is not None:
            write_sheet(arguments.sheets / f"{one.name}.png", one, pairs)
    for title, are_photos in (("photos", True), ("images of 8 and 28 pixels", False)):
        rows = [row for row in recalls if row["photos"] == are_photos]
        report.tables[f"Recall by change, {title}"] = [
            {
                "change": change,
                **{r["set"]: r["recall"] for r in rows if r["change"] == change},
                "mean": fmean(r["recall"] for r in rows if r["change"] == change),
            }
            for change in (CHANGES if rows else ())
        ]
    report.tables["The sets as they are"] = sets
    photos = [row for row in recalls if row["photos"]]
    by_change = report.tables["Recall by change, photos"]
    n_photos = sum(row["images"] for row in sets if row["photos"])
    n_copies_made = sum(row["copies"] for row in photos)
    n_false_pairs = sum(row["false pairs"] for row in photos)
    n_false_alarms = sum(row["false alarms"] for row in sets if row["photos"])
    report.ratios += [
        Ratio("recall over all photo sets and changes", fmean(r["recall"] for r in photos), 0.95),
        Ratio("lowest recall of a change", min(r["mean"] for r in by_change), 0.95),
        Ratio(
            "false pairs per 1,000 copies",
            1000 * n_false_pairs / n_copies_made,
            1.0,
            at_least=False,
        ),
        Ratio(
            "false alarms per 1,000 photos", 1000 * n_false_alarms / n_photos, 1.0, at_least=False
        ),
        Ratio(
            "seconds of one core per 1,000 photos",
            1000 * sum(r["seconds"] for r in sets if r["photos"]) / n_photos,
            2.0,
            at_least=False,
        ),
    ]
    report.publish(arguments)
    return 0


def measure(
    one: Images, n_copies: int
) -> tuple[list[dict[str, Any]], dict[str, Any], list[tuple[str, str, float]]]:
    """Search for near-duplicates in a set as it is, and with copies of each kind.

    Returns:
        A row for each change, a row for the set, and the pairs in the set: names and similarity.
    """
    started = time.process_time()
    base = make_thumbnails(one.images)
    thumbnail_seconds = time.process_time() - started
    alone = find_near_duplicates(base, flip=True)
    seconds = time.process_time() - started
    rng = np.random.default_rng(0)
    n = len(one.images)
    picked = rng.permutation(n)[:n_copies]
    known = groups_of(n, alone.pairs)
    rows = []
    for change, apply in CHANGES.items():
        copies = make_thumbnails([apply(one.images[i], rng) for i in picked])
        near_duplicates = find_near_duplicates(Thumbnails.concatenate([base, copies]), flip=True)
        groups = groups_of(n + len(picked), near_duplicates.pairs)
        origin = np.concatenate([known, known[picked]])
        n_false = int(
            (origin[near_duplicates.pairs[:, 0]] != origin[near_duplicates.pairs[:, 1]]).sum()
        )
        recall = float((groups[n:] == groups[picked]).mean())
        found = {"recall": recall, "copies": len(picked), "false pairs": n_false}
        rows.append({"set": one.name, "photos": one.are_photos, "change": change, **found})
    pairs = [
        (one.names[first], one.names[second], round(value, 3))
        for (first, second), value in zip(
            alone.pairs.tolist(), alone.similarity.tolist(), strict=True
        )
    ]
    reviewed = read_reviewed_pairs()
    row = {
        "set": one.name,
        "photos": one.are_photos,
        "images": n,
        "pairs": len(pairs),
        "false alarms": sum((one.name, *pair[:2]) not in reviewed for pair in pairs),
        "seconds": seconds,
        "of which thumbnails": thumbnail_seconds,
    }
    return rows, row, pairs


def read_reviewed_pairs() -> set[tuple[str, str, str]]:
    """Read the pairs that a person has reviewed and calls copies: the set and two names."""
    rows = read_rows(REVIEWED_PAIRS)
    return {(row["set"], row["image"], row["duplicate_of"]) for row in rows}


def write_sheet(path: Path, one: Images, pairs: list[tuple[str, str, float]]) -> None:
    """Draw the pairs that were found side by side, the least similar first."""
    shown = sorted(pairs, key=lambda pair: pair[2])[:_MAX_SHOWN]
    if not shown:
        return
    places = {name: place for place, name in enumerate(one.names)}
    across, side = 4, 120
    down = -(-len(shown) // across)
    sheet = Image.new("RGB", (across * (2 * side + 20), down * (side + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (first, second, value) in enumerate(shown):
        x, y = place % across * (2 * side + 20), place // across * (side + 16)
        for half, name in enumerate((first, second)):
            small = ImageOps.contain(one.images[places[name]], (side, side))
            sheet.paste(small, (x + half * (side + 2), y))
        draw.text((x, y + side + 1), f"{place} {value:.3f} {first} {second}"[-42:], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def make_thumbnails(images: list[Image.Image]) -> Thumbnails:
    """Compute the thumbnails of images."""
    thumbnails = Thumbnails.empty(len(images))
    for row, image in enumerate(images):
        thumbnails.draw(row, image)
    return thumbnails


def _sets(arguments: argparse.Namespace, n_small: int) -> Iterator[Images]:
    if arguments.mode == "smoke":
        yield Images("drawn", True, [str(i) for i in range(60)], [_draw(i) for i in range(60)])
        return
    data = need_data(arguments)
    for name, where in PHOTOS.items():
        files = sorted(p for p in (data / where).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        files = [path for path in files if path.parent.name != "BACKGROUND_Google"]
        with ThreadPoolExecutor() as threads:
            images = list(threads.map(read_image, files))
        yield Images(name, True, [str(p.relative_to(data / where)) for p in files], images)
    for name, source in (("digits", digits()), ("Fashion-MNIST", fashion_mnist())):
        found = source.open(data if name != "digits" else None, data)
        if isinstance(found, Arrays):
            images = [Image.fromarray(x).convert("RGB") for x in found.images[:n_small]]
            yield Images(name, False, [str(i) for i in range(len(images))], images)


def _draw(seed: int) -> Image.Image:
    """Draw soft blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    sys.exit(main())
