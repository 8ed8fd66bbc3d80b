"""A finished run's own images, read again: to check what is made from its model.

Nothing is chosen by them. What a run says of its held-out images comes from `pipeline.evaluate`
alone, which opened them once; an export is compared with that same model on those same images.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from search.data.class_folders import DataError
from search.data.packing import image_digest
from search.pipeline.preflight import cache_folder
from search.runs.run_folder import RunFolder
from spaces.base import load_space
from spaces.sources import Arrays
from trainables.images import ImageError, read_image
from trainables.models.ensemble import ModelCard


@dataclass(frozen=True, eq=False)
class RunImages:
    """Some of a run's images.

    Attributes:
        names: As in `split.csv`.
        labels: int64 [n], indices into the model's classes.
        decoded: uint8 [n, S, S, 3], S the card's `cache_size`.
        n_missing: How many were asked for and are not there, or cannot be read, any more.
        n_changed: How many of those that are there are no longer the same, by `split.csv`.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    decoded: np.ndarray
    n_missing: int
    n_changed: int


def read_split(
    run: Path, card: ModelCard, split: str, data: Path | None, most: int | None = None
) -> RunImages:
    """Read the images of one of a run's splits again. This runs the run's `space.py`.

    Args:
        run: The run's folder.
        card: Of its model.
        split: "train", "val" or "test".
        data: Where the images are now; None is where they were.
        most: Only so many, spread evenly over the split; None is all.

    Raises:
        DataError: the run has no such images, or they are not where they were.
        FolderError, SpaceError, SourceError: the folder is no run, or its images cannot be had.
    """
    folder = RunFolder.open(run)
    wanted = _read_rows(folder.path / "split.csv", card, split)
    if most is not None and len(wanted) > most:
        wanted = [wanted[i] for i in np.linspace(0, len(wanted) - 1, most).round().astype(int)]
    before = folder.environment["request"].get("data")
    where = data or (Path(before) if before else None)
    found = load_space(folder.path / "space.py").source.open(where, cache_folder())
    names = [row.name for row in wanted]
    if isinstance(found, Arrays):
        images = _read_arrays(found, names, card)
    else:
        images = _read_files(found, names, card)
    there = [(row, *one) for row, one in zip(wanted, images, strict=True) if one is not None]
    if not there:
        raise DataError(
            f"none of the {len(wanted)} {split} images of {run} is in"
            f" {found if isinstance(found, Path) else 'its source'} any more, such as"
            f" {names[0]!r}: say with --data where they are now"
        )
    return RunImages(
        names=tuple(row.name for row, *_ in there),
        labels=np.array([row.label for row, *_ in there], dtype=np.int64),
        decoded=np.stack([decoded for _, decoded, _ in there]),
        n_missing=len(wanted) - len(there),
        n_changed=sum(row.digest not in ("", digest) for row, _, digest in there),
    )


class _Row(NamedTuple):
    """A line of `split.csv`; an earlier version kept no digest."""

    name: str
    label: int
    digest: str


def _read_rows(path: Path, card: ModelCard, split: str) -> list[_Row]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no split.csv: its search did not come so far")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row.get("split") == split]
    try:
        wanted = [
            _Row(row["name"], card.classes.index(row["label"]), row.get("digest", ""))
            for row in rows
        ]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not belong to the model beside it: {error}") from None
    if not wanted:
        raise DataError(f"{path} lists no {split} images")
    return wanted


_Read = tuple[np.ndarray, str] | None
"""A packed image and its digest; None where there is none."""


def _read_files(root: Path, names: Sequence[str], card: ModelCard) -> list[_Read]:
    images: list[_Read] = []
    for name in names:
        try:
            content = (root / name).read_bytes()
            decoded = card.to_square(read_image(BytesIO(content)))
        except (OSError, ImageError):
            images.append(None)
        else:
            images.append((decoded, image_digest(content)))
    return images


def _read_arrays(arrays: Arrays, names: Sequence[str], card: ModelCard) -> list[_Read]:
    row_of = {name: row for row, name in enumerate(arrays.names)}
    images: list[_Read] = []
    for name in names:
        if name not in row_of:
            images.append(None)
            continue
        pixels = arrays.images[row_of[name]]
        decoded = card.to_square(Image.fromarray(pixels).convert("RGB"))
        images.append((decoded, image_digest(pixels.tobytes())))
    return images
