"""A finished run's own pictures, read again: to check what is made from its model.

Nothing is chosen by them. What a run says of its held-out pictures comes from `search.evaluate`
alone, which opened them once; an export is compared with that same model on those same pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from search.checks import cache_folder
from search.folder import RunFolder
from search.layout import DataError
from spaces.base import load_space
from spaces.sources import Arrays
from trainables.images import PictureError, read_picture
from trainables.model import ModelCard


@dataclass(frozen=True, eq=False)
class RunPictures:
    """Some of a run's pictures.

    Attributes:
        names: As in `split.csv`.
        labels: int64 [n], indices into the model's classes.
        packed: uint8 [n, S, S, 3], S the card's `packed_size`.
        n_missing: How many were asked for and are not there, or cannot be read, any more.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    packed: np.ndarray
    n_missing: int


def read_split(
    run: Path, card: ModelCard, split: str, data: Path | None, most: int | None = None
) -> RunPictures:
    """Read the pictures of one of a run's splits again. This runs the run's `space.py`.

    Args:
        run: The run's folder.
        card: Of its model.
        split: "train", "val" or "test".
        data: Where the pictures are now; None is where they were.
        most: Only so many, spread evenly over the split; None is all.

    Raises:
        DataError: the run has no such pictures, or they are not where they were.
        FolderError, SpaceError, SourceError: the folder is no run, or its pictures cannot be had.
    """
    folder = RunFolder.open(run)
    wanted = _names_and_labels(folder.path / "split.csv", card, split)
    if most is not None and len(wanted) > most:
        wanted = [wanted[i] for i in np.linspace(0, len(wanted) - 1, most).round().astype(int)]
    before = folder.environment["request"].get("data")
    where = data or (Path(before) if before else None)
    found = load_space(folder.path / "space.py").source.open(where, cache_folder())
    names = [name for name, _ in wanted]
    if isinstance(found, Arrays):
        pictures = _read_arrays(found, names, card)
    else:
        pictures = _read_files(found, names, card)
    kept = [i for i, picture in enumerate(pictures) if picture is not None]
    if not kept:
        raise DataError(
            f"none of the {len(wanted)} {split} pictures of {run} is in"
            f" {found if isinstance(found, Path) else 'its source'} any more, such as"
            f" {wanted[0][0]!r}: say with --data where they are now"
        )
    return RunPictures(
        names=tuple(wanted[i][0] for i in kept),
        labels=np.array([wanted[i][1] for i in kept], dtype=np.int64),
        packed=np.stack([picture for picture in pictures if picture is not None]),
        n_missing=len(wanted) - len(kept),
    )


def _names_and_labels(path: Path, card: ModelCard, split: str) -> list[tuple[str, int]]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no split.csv: its search did not come so far")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row.get("split") == split]
    try:
        wanted = [(row["name"], card.classes.index(row["label"])) for row in rows]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not belong to the model beside it: {error}") from None
    if not wanted:
        raise DataError(f"{path} lists no {split} pictures")
    return wanted


def _read_files(root: Path, names: Sequence[str], card: ModelCard) -> list[np.ndarray | None]:
    pictures: list[np.ndarray | None] = []
    for name in names:
        try:
            pictures.append(card.fit(read_picture(root / name)))
        except PictureError:
            pictures.append(None)
    return pictures


def _read_arrays(arrays: Arrays, names: Sequence[str], card: ModelCard) -> list[np.ndarray | None]:
    row_of = {name: row for row, name in enumerate(arrays.names)}
    rows = [row_of.get(name) for name in names]
    return [
        None if row is None else card.fit(Image.fromarray(arrays.images[row]).convert("RGB"))
        for row in rows
    ]
