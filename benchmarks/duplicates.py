"""Near-duplicates: how many planted ones are found, and what else is taken for one.

    python benchmarks/duplicates.py [--quick] [--data DIR]

Of each picture set, pictures are copied and changed, one kind of change at a time; every copy is
looked for among the whole set and all copies of its kind. Recall is the share of copies that end up
in their original's group. What is found in the set as it is, without any copies, is listed with its
similarity, for a person to judge: real sets hold real copies. Strangers is a pair of which neither
was made from the other, found among originals and copies beyond what the set holds itself: a false
alarm for certain.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reporting import Ratio, Report, Row, command_line, say
from benchmarks.workbench import need_data
from search.sketch import Sketches
from search.twins import find_twins, groups_of
from spaces.sources import Arrays, digits, fashion_mnist
from trainables.images import PICTURE_SUFFIXES, read_picture

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

PHOTOS = {
    "Caltech six": "caltech101/101_ObjectCategories",
    "cats and dogs": "cats_dogs",
    "products": "products",
    "tools": "tools",
    "elsewhere": "external/caltech6",
}
_SIZES = {"full": (300, 20_000), "quick": (100, 4_000), "smoke": (10, 200)}
"""Copies of each kind from each set, and small pictures taken."""


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Encode and decode."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resize(image: Image.Image, share: float) -> Image.Image:
    """Resize both sides to a share."""
    size = (max(4, round(share * image.width)), max(4, round(share * image.height)))
    return image.resize(size, Image.Resampling.BICUBIC)


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Cut shares of the sides off."""
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(round(edge) for edge in box))


def crop_some(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut 5 to 8 % of the width and of the height off, shared between both sides by chance."""
    across, down, x, y = *rng.uniform(0.05, 0.08, 2), *rng.random(2)
    return crop(image, across * x, down * y, across * (1 - x), down * (1 - y))


def combine(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop, resize, brighten and re-encode."""
    smaller = resize(crop(image, *rng.uniform(0.01, 0.025, 4)), 0.7)
    return as_jpeg(ImageEnhance.Brightness(smaller).enhance(rng.choice([0.85, 1.15])), 60)


def _either(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


CHANGES: dict[str, Change] = {
    "JPEG quality 50": lambda image, rng: as_jpeg(image, 50),
    "PNG to JPEG": lambda image, rng: as_jpeg(image, 92),
    "resized to 60 %": lambda image, rng: resize(image, 0.6),
    "5 to 8 % cropped": crop_some,
    "5 to 8 % off each side": lambda image, rng: crop(image, *rng.uniform(0.05, 0.08, 4)),
    "brightness ± 20 %": lambda image, rng: ImageEnhance.Brightness(image).enhance(
        1 + 0.2 * _either(rng)
    ),
    "contrast ± 30 %": lambda image, rng: ImageEnhance.Contrast(image).enhance(
        1 + 0.3 * _either(rng)
    ),
    "turned by 2°": lambda image, rng: image.rotate(2 * _either(rng), Image.Resampling.BICUBIC),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "border of 5 %": lambda image, rng: ImageOps.expand(
        image,
        max(1, round(0.05 * min(image.size))),
        ("white", "black", "#808080")[rng.integers(3)],
    ),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "cropped, resized, brightened, re-encoded": combine,
}


def main() -> None:
    """Measure, and report."""
    arguments = command_line(__doc__, data=True).parse_args()
    data = need_data(arguments)
    n_copies, n_small = _SIZES[arguments.mode]
    report = Report("duplicates", "Near-duplicates found, and false alarms.")
    recalls: list[Row] = []
    sets: list[Row] = []
    for name, images in _sets(data, n_small):
        say(f"{name}: {len(images)} pictures")
        found, row = measure(name, images, n_copies)
        recalls += found
        sets.append(row)
        report.extra[name] = [f"{value:.3f}" for value in row.pop("similarities")]
    photos = [row for row in recalls if row["set"] in PHOTOS]
    report.tables["Recall by change, photos"] = [
        {
            "change": change,
            **{r["set"]: r["recall"] for r in photos if r["change"] == change},
            "mean": mean(r["recall"] for r in photos if r["change"] == change),
        }
        for change in CHANGES
    ]
    small = [row for row in recalls if row["set"] not in PHOTOS]
    report.tables["Recall by change, pictures of 8 and 28 pixels"] = [
        {"change": change, **{r["set"]: r["recall"] for r in small if r["change"] == change}}
        for change in CHANGES
    ]
    report.tables["The sets as they are"] = sets
    n_photos = sum(row["pictures"] for row in sets if row["set"] in PHOTOS)
    n_copies_made = sum(row["copies"] for row in photos)
    strangers = sum(row["strangers"] for row in photos)
    report.ratios += [
        Ratio("recall over all photo sets and changes", mean(r["recall"] for r in photos), 0.95),
        Ratio(
            "strangers per 1,000 copies looked for",
            1000 * strangers / n_copies_made,
            1.0,
            at_least=False,
        ),
        Ratio(
            "seconds of one core per 1,000 photos",
            1000 * sum(r["seconds"] for r in sets if r["set"] in PHOTOS) / n_photos,
            2.0,
            at_least=False,
        ),
    ]
    report.publish(arguments)


def measure(name: str, images: list[Image.Image], n_copies: int) -> tuple[list[Row], dict]:
    """Look through a set as it is, and then with copies of each kind."""
    started = time.process_time()
    base = sketch(images)
    sketched = time.process_time() - started
    alone = find_twins(base, flip=True)
    seconds = time.process_time() - started
    rng = np.random.default_rng(0)
    n = len(images)
    picked = rng.permutation(n)[:n_copies]
    known = groups_of(n, alone.pairs)
    rows: list[Row] = []
    for change, apply in CHANGES.items():
        copies = sketch([apply(images[i], rng) for i in picked])
        twins = find_twins(Sketches.join([base, copies]), flip=True)
        groups = groups_of(n + len(picked), twins.pairs)
        origin = np.concatenate([known, known[picked]])
        strangers = int((origin[twins.pairs[:, 0]] != origin[twins.pairs[:, 1]]).sum())
        recall = float((groups[n:] == groups[picked]).mean())
        found = {"recall": recall, "copies": len(picked), "strangers": strangers}
        rows.append({"set": name, "change": change, **found})
    row = {
        "set": name,
        "pictures": n,
        "pairs": len(alone.pairs),
        "pairs per 1,000": 1000 * len(alone.pairs) / n,
        "seconds": seconds,
        "of which sketches": sketched,
        "similarities": sorted(alone.similarity.tolist(), reverse=True)[:100],
    }
    return rows, row


def sketch(images: list[Image.Image]) -> Sketches:
    """Sketch pictures."""
    sketches = Sketches.empty(len(images))
    for row, image in enumerate(images):
        sketches.draw(row, image)
    return sketches


def _sets(data: Path, n_small: int) -> Iterator[tuple[str, list[Image.Image]]]:
    for name, where in PHOTOS.items():
        files = sorted(p for p in (data / where).rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
        files = [path for path in files if path.parent.name != "BACKGROUND_Google"]
        if n_small < 1000:
            files = files[:: len(files) // 40 + 1]
        with ThreadPoolExecutor() as threads:
            yield name, list(threads.map(read_picture, files))
    for name, source in (("digits", digits()), ("Fashion-MNIST", fashion_mnist())):
        found = source.open(data if name != "digits" else None, data)
        if isinstance(found, Arrays):
            yield name, [Image.fromarray(x).convert("RGB") for x in found.images[:n_small]]


if __name__ == "__main__":
    main()
