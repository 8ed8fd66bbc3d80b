"""Read tables of images and labels: CSV, TSV, JSON lines, Parquet, or a DataFrame of a space.

CSV is read by the standard library, since a mistake in a table is to be reported before pandas
could be imported.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from search.console.formatting import some
from search.data.image_files import DataError
from spaces.archives import TABLE_SUFFIXES
from spaces.label_tables import LabelTable, cell_text
from spaces.sources import did_you_mean
from trainables.json_text import parse_json


class MissingColumnError(DataError):
    """A table has no column of images, or none of labels."""


class Row(NamedTuple):
    """A row of a table, as text."""

    number: int
    """Its line in the file, or its number in a table in memory, both from 1."""
    image: str
    label: str
    split: str
    group: str


class Columns(NamedTuple):
    """The columns that are used, by name; None where there is none."""

    image: str
    label: str
    split: str | None
    group: str | None


_NAMES: Mapping[str, tuple[frozenset[str], ...]] = {
    "image": (
        frozenset(
            (
                *("image", "imagepath", "imagefile", "imagename", "imageid", "imagefilename"),
                *("img", "imgpath", "imgfile", "imgname", "imgid", "photo", "photoid"),
                *("path", "file", "filename", "filepath", "fname"),
            )
        ),
        frozenset(("id", "name", "key", "uuid")),
    ),
    "label": (
        frozenset(
            (
                *("label", "labels", "class", "classname", "classlabel", "labelname"),
                *("category", "categoryname", "target"),
            )
        ),
        frozenset(("classid", "labelid", "categoryid", "y")),
    ),
    "split": (frozenset(("split", "subset", "partition", "set")),),
    "group": (frozenset(("group", "groups", "groupid")),),
}
"""Names of columns, in lower case and without other signs; the first set goes before the second."""
_WHAT = {"image": "paths of images", "label": "labels", "split": "splits", "group": "groups"}


def find_table(path: Path, root: Path) -> Path:
    """Return the file of a table, which may lie in the data folder.

    Raises:
        DataError: there is none.
    """
    for place in (Path(os.path.expanduser(path)), root / path, root / path.name):  # noqa: PTH111
        if place.is_file():
            return place
    raise DataError(f"--labels must name a table, but there is no {path}, nor {root / path.name}")


def read_rows(table: LabelTable, root: Path) -> tuple[list[Row], Columns]:
    """Read a table.

    Args:
        table: Its description.
        root: The data folder.

    Raises:
        MissingColumnError: it has no column of images, or none of labels.
        DataError: it cannot be read, its columns are ambiguous, or it has no rows.
    """
    if table.path is None:
        header: Sequence[str] = table.header
        cells: Sequence[Sequence[Any]] = table.rows
        numbers: Sequence[int] = range(1, len(cells) + 1)
    else:
        header, cells, numbers = _read(find_table(table.path, root))
    columns = find_columns(table, header)
    if not cells:
        raise DataError(f"{table} must have a row per image, but has none")
    return [
        Row(number, *(_cell(table, row, number, header, name) for name in columns))
        for number, row in zip(numbers, cells, strict=True)
    ], columns


def find_columns(table: LabelTable, header: Sequence[str]) -> Columns:
    """Find the columns of a table, by the names that it was described with or by usual ones.

    Where only one other column is there, it is that of images or that of labels under any name.

    Raises:
        MissingColumnError: there is none of images, or none of labels.
        DataError: one may be one of several.
    """
    found: dict[str, str | None] = {}
    for role in _NAMES:
        given: str | None = getattr(table, role)
        found[role] = _named(table, role, header) if given is None else _given(table, given, header)
    for role, other in (("image", "label"), ("label", "image")):
        left = [name for name in header if name not in found.values()]
        if found[role] is None and found[other] is not None and len(left) == 1:
            found[role] = left[0]
        if found[role] is None:
            raise MissingColumnError(
                f"{table} must have a column of {_WHAT[role]}, but none of its columns"
                f" ({some(map(repr, header))}) is called so (such as {role!r}): name it with"
                f" --{role}-column; the first line of the file must name the columns"
            )
    used = [name for name in found.values() if name is not None]
    if len(set(used)) < len(used):
        twice = next(name for name in used if used.count(name) > 1)
        raise DataError(
            f"every column of {table} can be used once, but {twice!r} would be used for"
            f" {' and '.join(_WHAT[role] for role, name in found.items() if name == twice)}: name"
            " the others with --image-column and --label-column"
        )
    return Columns(str(found["image"]), str(found["label"]), found["split"], found["group"])


def _given(table: LabelTable, name: str, header: Sequence[str]) -> str:
    """Return the column of a given name."""
    found = [one for one in header if one == name] or [
        one for one in header if one.strip().casefold() == name.strip().casefold()
    ]
    if len(found) != 1:
        if found:
            raise DataError(f"{table} has {len(found)} columns {name!r}: rename all but one")
        raise MissingColumnError(
            f"{table} has no column {name!r}{did_you_mean(name, header)} (it has"
            f" {some(map(repr, header))})"
        )
    return found[0]


def _named(table: LabelTable, role: str, header: Sequence[str]) -> str | None:
    """Return the column with a usual name for a role; None where there is none."""
    for names in _NAMES[role]:
        found = [name for name in header if _letters(name) in names]
        if len(found) > 1:
            # There is no --split-column, and no option tells columns of the same name apart.
            has_option = role != "split" and len(set(found)) > 1
            way_out = f"name it with --{role}-column" if has_option else "rename the others"
            raise DataError(
                f"{table} must have one column of {_WHAT[role]}, but {some(map(repr, found))} may"
                f" be it: {way_out}"
            )
        if found:
            return found[0]
    return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def is_usual_name(role: str, column: str) -> bool:
    """Return whether a column has one of the usual names for a role, such as "label"."""
    return any(_letters(column) in names for names in _NAMES[role])


def _cell(
    table: LabelTable, row: Sequence[Any], number: int, header: Sequence[str], name: str | None
) -> str:
    if name is None:
        return ""
    index = header.index(name)
    value = row[index] if index < len(row) else ""
    if isinstance(value, list | tuple | dict | bytes):
        raise DataError(
            f"the column {name!r} of {table} must hold text or numbers, one per image, but row"
            f" {number} holds a {type(value).__name__}: give a table of paths and labels"
        )
    text = cell_text(value).strip()
    if re.search(r"[\0\r\n]", text):  # a quote that is not closed swallows the lines below
        raise DataError(
            f"every cell of {table} must be one line of text, but in row {number} the column"
            f" {name!r} holds {text[:40]!r}: is a quote not closed?"
        )
    return text


_Table = tuple[Sequence[str], Sequence[Sequence[Any]], Sequence[int]]
"""The header, the rows, and their lines in the file."""


def _read(path: Path) -> _Table:
    readers: dict[str, Callable[[Path], _Table]] = {
        **dict.fromkeys((".csv", ".tsv", ".txt"), _read_csv),
        **dict.fromkeys((".jsonl", ".ndjson"), _read_json_lines),
        **dict.fromkeys((".parquet", ".pq"), _read_parquet),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"--labels must be a table ({', '.join(TABLE_SUFFIXES)}), but got {path}: save it as"
            " CSV"
        )
    try:
        return reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} must be text in UTF-8, but line {line} is not: save it again, as"
            " 'CSV UTF-8' in a spreadsheet"
        ) from None


def _read_csv(path: Path) -> _Table:
    text = _read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, numbers = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}, is no CSV: {error} (is a quote not closed?)"
        ) from None
    if not rows:
        raise DataError(f"{path} is empty")
    header = [name.strip() for name in rows[0]]
    for row, number in zip(rows[1:], numbers[1:], strict=True):
        if any(cell.strip() for cell in row[len(header) :]):
            raise DataError(
                f"{path}, line {number}, has {len(row)} cells, but the header {len(header)}: put"
                f" cells with a {delimiter!r} in quotes"
            )
    return header, rows[1:], numbers[1:]


def _read_json_lines(path: Path) -> _Table:
    objects: list[Mapping[str, Any]] = []
    numbers = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}, must be a JSON object")
        objects.append(value)
        numbers.append(number)
    header = list(dict.fromkeys(name for one in objects for name in one))
    return header, [[one.get(name) for name in header] for one in objects], numbers


def _read_parquet(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq  # takes a second, which other tables do not need

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise DataError(f"{path} is no Parquet file: {error}") from None
    columns = [column.to_pylist() for column in table.columns]
    rows = list(zip(*columns, strict=True))
    return table.column_names, rows, range(1, len(rows) + 1)
