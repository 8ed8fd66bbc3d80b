"""Read the images of a finished run's split again, to check an export of its model on them.

They choose nothing. The run's test accuracy comes from `search.pipeline.evaluate` alone, which
evaluated it before; an export is compared with the same model on the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from search.data.decoding import read_images
from search.data.image_files import DataError
from search.runs.run_folder import RunFolder
from search.runs.tables import read_rows
from spaces.base import load_space
from spaces.downloads import cache_folder
from spaces.sources import Arrays
from trainables.images import ImageError, pixel_limit
from trainables.models.model_card import ModelCard


@dataclass(frozen=True, eq=False)
class RunImages:
    """Images of one split of a run.

    Attributes:
        names: The images, as in `split.csv`.
        labels: int64 [n], indices into the model's classes.
        decoded: uint8 [n, S, S, 3], S the card's `cache_size`.
        n_missing: Images of the split that are missing by now, or unreadable.
        n_changed: Images whose content has changed since the run, by the digests in `split.csv`.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    decoded: np.ndarray
    n_missing: int
    n_changed: int


class _Row(NamedTuple):
    """A row of `split.csv`."""

    name: str
    label: int
    digest: str


def read_split(
    run: Path, card: ModelCard, split: str, data: Path | None, n: int | None = None
) -> RunImages:
    """Read the images of one of a run's splits. This executes the run's `space.py`.

    Args:
        run: The run's folder.
        card: The card of its model.
        split: "train", "val" or "test".
        data: The folder of the images; None: the one that the run had.
        n: Images to read, evenly spread over the split; None: all.

    Raises:
        DataError: the run has no such split, or none of its images can be found.
        FolderError, SpaceError, SourceError: the folder is no run, or its source is unavailable.
    """
    folder = RunFolder.open(run)
    rows = _read_rows(folder.path / "split.csv", card, split)
    if n is not None and len(rows) > n:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, n).round().astype(int)]
    request = folder.environment.request
    space = load_space(folder.path / "space.py")
    source = request.with_labels(space.source).open(data or request.data, cache_folder())
    contents: list[Path | np.ndarray]
    if isinstance(source, Arrays):
        index_of = {name: index for index, name in enumerate(source.names)}
        present = [row for row in rows if row.name in index_of]
        contents = [source.images[index_of[row.name]] for row in present]
    else:
        present = rows
        contents = [source / row.name for row in rows]
    read: list[_Row] = []
    decoded: list[np.ndarray] = []
    n_changed = 0
    with pixel_limit(request.max_megapixels):
        for index, image, digest, _ in read_images(contents, card.levels):
            if not isinstance(image, ImageError):
                read.append(present[index])
                decoded.append(card.to_square(image))
                n_changed += digest != present[index].digest
    if not read:
        raise DataError(
            f"none of the {len(rows)} {split} images of {run} is in"
            f" {source if isinstance(source, Path) else 'its source'}, such as {rows[0].name!r}:"
            " give their folder with --data"
        )
    return RunImages(
        names=tuple(row.name for row in read),
        labels=np.array([row.label for row in read], dtype=np.int64),
        decoded=np.stack(decoded),
        n_missing=len(rows) - len(read),
        n_changed=n_changed,
    )


def _read_rows(path: Path, card: ModelCard, split: str) -> list[_Row]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no split.csv: its search ended before the split")
    try:
        rows = [
            _Row(row["image"], card.classes.index(row["label"]), row["digest"])
            for row in read_rows(path)
            if row["split"] == split
        ]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not belong to the model beside it: {error}") from None
    if not rows:
        raise DataError(f"{path} lists no {split} images")
    return rows
