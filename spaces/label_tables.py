"""Tables that name images and their labels, as a space or the command line describes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spaces.errors import SourceError


class DataFrame(Protocol):
    """A table in memory: a pandas DataFrame, or what has the same attributes."""

    columns: Any

    def itertuples(self, index: bool = ..., name: None = ...) -> Any:
        """Iterate over the rows as tuples."""
        ...


@dataclass(frozen=True)
class LabelTable:
    """A table with a row per image, and which of its columns are which.

    Attributes:
        path: The file; a relative path is below the data folder, or below the working directory.
            None where the table is in memory.
        header: The names of the columns of a table in memory.
        rows: Its cells, as text.
        image: The column of the images' paths; None finds it by its name, as for the others.
        label: The column of the labels.
        split: The column of the official splits; None takes one called "split", if there is one.
        group: The column of the groups; None takes one called "group", if there is one.
    """

    path: Path | None = None
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        """Return what an error calls the table."""
        return "the table" if self.path is None else str(self.path)


def label_table(
    table: DataFrame | str | Path,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
) -> LabelTable:
    """Describe a table: a pandas DataFrame, or the path of a .csv, .tsv, .jsonl or .parquet file.

    Raises:
        SourceError: it is neither.
    """
    if isinstance(table, str | Path):
        return LabelTable(Path(table), (), (), image, label, split, group)
    if not hasattr(table, "columns") or not hasattr(table, "itertuples"):
        raise SourceError(
            "a table of labels must be a DataFrame or the path of a file, but is of type"
            f" {type(table).__name__}"
        )
    header = tuple(str(name) for name in table.columns)
    rows = (tuple(map(cell_text, row)) for row in table.itertuples(index=False, name=None))
    return LabelTable(None, header, tuple(rows), image, label, split, group)


def cell_text(value: object) -> str:
    """Return a cell as text: "" where it is missing, and whole numbers without a decimal point.

    pandas makes floats of whole numbers beside missing ones.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value)
    return "" if text in ("<NA>", "NaT") else text
