"""Read the images that `--exclude FILE` names, and exclude them from a manifest."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.console.formatting import some
from search.data.image_files import DataError
from search.runs.tables import EXCLUDED_COLUMNS, write_csv
from spaces.sources import did_you_mean

EXTERNAL = "external:"
"""Prefix of the names of external images, where images of both sets are listed."""

_MAX_BYTES = 2**28
_MAX_COMPARED = 5000
"""Names among which the nearest to a misspelt one is searched for."""


@dataclass(frozen=True)
class Exclusion:
    """Images to exclude.

    Attributes:
        path: The file that names them.
        names: As in `split.csv`; those of external images begin with `EXTERNAL`.
        must_exist: Whether a name without an image is an error. It is none when a run is resumed,
            since excluded images may have been deleted.
    """

    path: Path
    names: tuple[str, ...]
    must_exist: bool = True

    def remaining(
        self, names: Sequence[str], skipped: Collection[str] = (), external: bool = False
    ) -> np.ndarray:
        """Return the int64 indices of the images that are not excluded.

        Args:
            names: Names of the images.
            skipped: Names of files that are not used anyway.
            external: Whether these are the external images.

        Raises:
            DataError: an excluded name is not among the names.
        """
        excluded = {
            name.removeprefix(EXTERNAL) if external else name
            for name in self.names
            if name.startswith(EXTERNAL) == external
        }
        unknown = excluded.difference(names).difference(skipped)
        if unknown and self.must_exist:
            raise DataError(self._unknown(sorted(unknown), names, external))
        return np.flatnonzero(np.array([name not in excluded for name in names], dtype=np.bool_))

    def _unknown(self, unknown: Sequence[str], names: Sequence[str], external: bool) -> str:
        compared = names if len(names) <= _MAX_COMPARED else ()
        first, *others = unknown
        shown = [f"{first!r}{did_you_mean(first, compared)}", *map(repr, others)]
        what = "the external images" if external else "the images"
        example = f" (such as {names[0]!r})" if names else ""
        hint = "" if external else f"; an external image's name begins with {EXTERNAL!r}"
        return (
            f"--exclude must name {what} by their paths below the folder{example}, but"
            f" {self.path} names {some(shown, 3)}: correct the lines, or remove them{hint}"
        )


def read_exclusion(path: Path, must_exist: bool = True) -> Exclusion:
    """Read names from plain lines, or from the column `image` of a table such as `audit.csv`.

    Raises:
        DataError: the file cannot be read, or it names no images.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)  # a device may never end
    except OSError as error:
        raise DataError(
            f"--exclude must name a file, but {path} cannot be read: {error.strerror}"
        ) from None
    if len(content) > _MAX_BYTES:
        raise DataError(
            f"--exclude must name a file of at most {_MAX_BYTES / 1e6:.0f} MB, but {path} is"
            " larger: give another file"
        )
    names = _names_in(content.decode("utf-8-sig", "surrogateescape"))
    if not any(names) and must_exist:
        raise DataError(
            f"--exclude must name a file of images, one per line or in a column `image`, but {path}"
            " names none: remove the option, or give another file"
        )
    return Exclusion(path, tuple(dict.fromkeys(name for name in names if name)), must_exist)


def _names_in(text: str) -> list[str]:
    # Not by pandas: it refuses rows with too many cells, which a table edited by hand may have.
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        rows = []  # not a table: every line is a name
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    if "image" not in header:
        return [line.strip() for line in text.splitlines()]
    column = header.index("image")
    return [row[column] for row in rows[1:] if len(row) > column]


def write_exclusion(path: Path, exclusion: Exclusion) -> None:
    """Write the names as a table of one column, which `read_exclusion` reads."""
    write_csv(path, EXCLUDED_COLUMNS, ((name,) for name in exclusion.names))
