"""`--exclude FILE`: images that a person has looked at and wants left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.data.class_folders import DataError, some
from spaces.sources import did_you_mean

EXTERNAL = "external:"
"""What an external image's name begins with where images of both sets are listed."""

_NAME_COLUMNS = ("name", "image")
_MAX_COMPARED = 5000  # names, in search of the one that was meant


@dataclass(frozen=True)
class Exclusion:
    """Images to leave out.

    Attributes:
        path: The file that names them.
        names: As `split.csv` has them; those of external images begin with `EXTERNAL`.
        must_exist: Whether a name of no image is a mistake. A run that is carried on forgives
            it: who leaves images out may delete them later.
    """

    path: Path
    names: tuple[str, ...]
    must_exist: bool = True

    def kept(
        self, names: Sequence[str], skipped: Collection[str] = (), external: bool = False
    ) -> np.ndarray:
        """Return the int64 indices of the images that stay.

        Args:
            names: of the images.
            skipped: files beside them that are left out anyway.
            external: whether these are the external images.

        Raises:
            DataError: a name is that of no image.
        """
        mine = [name for name in self.names if name.startswith(EXTERNAL) == external]
        wanted = {name.removeprefix(EXTERNAL) if external else name for name in mine}
        unknown = wanted.difference(names).difference(skipped)
        if unknown and self.must_exist:
            raise DataError(self._unknown(sorted(unknown), names, external))
        stays = np.array([name not in wanted for name in names], dtype=np.bool_)
        return np.flatnonzero(stays)

    def _unknown(self, unknown: Sequence[str], names: Sequence[str], external: bool) -> str:
        compared = names if len(names) <= _MAX_COMPARED else ()
        first, *others = unknown
        shown = [f"{first!r}{did_you_mean(first, compared)}", *map(repr, others)]
        what = "the external images" if external else "the images"
        example = f" (such as {names[0]!r})" if names else ""
        hint = "" if external else f"; an external image's name begins with {EXTERNAL!r}"
        return (
            f"--exclude must name {what} by their paths below the folder{example}, but"
            f" {self.path} names {some(shown, 3)}: correct the lines, or take them out{hint}"
        )


def read_exclusion(path: Path, must_exist: bool = True) -> Exclusion:
    """Read names: plain lines, or the column `name` or `image` of a table such as `audit.csv`.

    Raises:
        DataError: the file cannot be read, or names nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(
            f"--exclude must name a file, but {path} cannot be read: {error.strerror}"
        ) from None
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        rows = []  # no table: the lines are names
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in _NAME_COLUMNS if name in header), None)
    if column is None:
        names = [line.strip() for line in text.splitlines()]
    else:
        names = [row[column] for row in rows[1:] if len(row) > column]
    if not any(names) and must_exist:
        raise DataError(
            f"--exclude must name a file of images, one a line or in a column `name`, but {path}"
            " names none: leave the option out, or give another file"
        )
    return Exclusion(path, tuple(dict.fromkeys(name for name in names if name)), must_exist)


def write_exclusion(path: Path, exclusion: Exclusion) -> None:
    """Write the names as a table of one column, which `read_exclusion` reads."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([["name"], *([n] for n in exclusion.names)])
