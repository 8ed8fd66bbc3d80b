"""Find the image files that a table of labels names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from search.console.formatting import some
from search.data.image_files import DataError, find_image_files, has_image_suffix
from search.data.layouts.class_folders import class_order
from search.data.layouts.label_table import Columns, Row, find_table, read_rows
from search.data.layouts.split_folders import nfc, split_named
from spaces.label_tables import LabelTable

UNLISTED = "has no row in the table"
"""Reason of an image that is not used."""
_SHOWN = 3
"""Rows that an error names."""


class LabelledFile(NamedTuple):
    """An image file with what a table says of it."""

    name: str
    """Its path below the data folder, with `/`."""
    label: str
    split: str | None
    group: str
    path: Path


class LabelledFiles(NamedTuple):
    """What a table says of the images in a folder.

    Attributes:
        labels: All labels, in their order as classes.
        files: The images.
        unused: Files that are not used, each with the reason.
        notes: Lines that say how the table was read.
    """

    labels: tuple[str, ...]
    files: list[LabelledFile]
    unused: list[tuple[Path, str]]
    notes: tuple[str, ...]


def find_labelled_files(
    root: Path, tables: Sequence[tuple[str | None, LabelTable]]
) -> LabelledFiles:
    """Find the images that tables name.

    A path in a table is below the data folder or the table's folder. Where there is no such file,
    it is the end of one file's path, or that without suffix, in any case: of "42" the file
    images/42.jpg.

    Args:
        root: The data folder.
        tables: The tables; all images of one are of its split, unless that is None.

    Raises:
        DataError: a table cannot be read, or names files that are missing, ambiguous or named
            twice; or labels or splits are missing.
    """
    found = find_image_files(root)
    reasons = dict(found.others)
    index = _Index(root, [*found.images, *reasons])
    files: dict[Path, LabelledFile] = {}
    notes: list[str] = []
    for split, table in tables:
        rows, columns = read_rows(table, root)
        _check_cells(table, rows)
        folder = None if table.path is None else _folder(table, root)
        paths = index.find_all(table, rows, folder, own_folder_first=split is not None)
        splits = _splits(table, rows, columns, split, [index.name_of(path) for path in paths])
        for row, path, part in zip(rows, paths, splits, strict=True):
            name = index.name_of(path)
            if path in files:
                raise DataError(
                    f"every image must have one row, but {name!r} is in row {row.number} of {table}"
                    " and in another table, too: correct the path, or remove one"
                )
            files[path] = LabelledFile(name, nfc(row.label), part, nfc(row.group), path)
        notes.append(_note(table, columns, splits))
    if len({file.split is None for file in files.values()}) > 1:
        raise DataError(f"all tables of {root} must name splits, or none")
    used = [file for path, file in files.items() if path not in reasons]
    unused = [(path, reasons[path]) for path in files if path in reasons]
    unused += [(path, UNLISTED) for path in found.images if path not in files]
    return LabelledFiles(class_order({file.label for file in used}), used, unused, tuple(notes))


def _folder(table: LabelTable, root: Path) -> Path:
    return find_table(Path(table.path or ""), root).absolute().parent


def _note(table: LabelTable, columns: Columns, splits: Sequence[str | None]) -> str:
    parts = [f"images in column {columns.image!r}, labels in {columns.label!r}"]
    if columns.split:
        parts.append(f"splits in {columns.split!r}")
    elif splits[0] is not None:
        parts.append("splits by folder")
    parts += [f"groups in {columns.group!r}"] if columns.group else []
    return f"{table}: {', '.join(parts)}"


def _check_cells(table: LabelTable, rows: Iterable[Row]) -> None:
    for name in ("image", "label"):
        if empty := [row.number for row in rows if not getattr(row, name)]:
            raise DataError(
                f"every row of {table} must have {'an image' if name == 'image' else 'a label'},"
                f" but the cell is empty in row{'' if len(empty) == 1 else 's'}"
                f" {some(map(str, empty), _SHOWN)}: fill it in, or remove the row"
            )


def _splits(
    table: LabelTable,
    rows: Sequence[Row],
    columns: Columns,
    of_table: str | None,
    names: Sequence[str],
) -> list[str | None]:
    """Return the official split of each row: the table's, the column's, or that of the folder."""
    if of_table is not None:
        return [of_table] * len(rows)
    if columns.split is None:
        by_folder = [split_named(name.split("/")[0]) if "/" in name else None for name in names]
        is_split = None not in by_folder and {"train"} < set(by_folder)
        return by_folder if is_split else [None] * len(rows)
    splits = [split_named(row.split) for row in rows]
    wrong = [row for row, split in zip(rows, splits, strict=True) if split is None]
    if wrong and (len(wrong) < len(rows) or any(row.split for row in rows)):
        raise DataError(
            f"the column {columns.split!r} of {table} must be train, val or test in every row, but"
            f" is {wrong[0].split!r} in row {wrong[0].number}: correct it, or rename the column"
        )
    return splits


class _Index:
    """Finds files by their paths, by the ends of their paths, and by these without suffix."""

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 (resolve() would follow links)
        self._paths = {_absolute(path): path for path in paths}
        self._ends: dict[str, list[Path]] = {}
        for path in self._paths.values():
            parts = path.relative_to(root).parts
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                stem = end[: -len(path.suffix)] if has_image_suffix(path) else end
                for key in {_key(end), _key(stem)}:
                    self._ends.setdefault(key, []).append(path)

    def name_of(self, path: Path) -> str:
        """Return a file's path below the data folder; one outside of it keeps its path."""
        absolute = Path(_absolute(path))
        if absolute.is_relative_to(self._root):
            return absolute.relative_to(self._root).as_posix()
        return absolute.as_posix()

    def find_all(
        self, table: LabelTable, rows: Sequence[Row], folder: Path | None, own_folder_first: bool
    ) -> list[Path]:
        """Find the file of each row of a table, which lies in a folder.

        Raises:
            DataError: some are missing, fit several files, or are named twice.
        """
        bases = [self._root] if folder in (None, self._root) else [self._root, Path(folder or "")]
        bases = bases[::-1] if own_folder_first else bases
        paths: list[Path] = []
        missing: list[Row] = []
        ambiguous: list[tuple[Row, list[Path]]] = []
        row_of: dict[Path, Row] = {}
        for row in rows:
            found = self._find(row.image, bases)
            if len(found) != 1:
                if found:
                    ambiguous.append((row, found))
                else:
                    missing.append(row)
                continue
            if found[0] in row_of:
                self._refuse_twice(table, row_of[found[0]], row)
            row_of[found[0]] = row
            paths += found
        if missing:
            where = " or ".join(map(str, bases))
            raise DataError(
                f"the images of {table} must lie below {where}, but {len(missing)} of"
                f" {len(rows)} do not: {_rows(missing)}; correct the paths, or give the folder that"
                " they begin in with --data"
            )
        if ambiguous:
            row, found = ambiguous[0]
            names = [repr(self.name_of(path)) for path in found]
            raise DataError(
                f"every row of {table} must name one file, but {len(ambiguous)} fit several:"
                f" {row.image!r} (row {row.number}) fits {some(names, _SHOWN)}; give paths below"
                f" {self._root}"
            )
        return paths

    def _find(self, text: str, bases: Sequence[Path]) -> list[Path]:
        for base in bases:
            place = _absolute(base / text)
            if place in self._paths:
                return [self._paths[place]]
            if base != self._root and Path(place).is_file():
                return [Path(place)]
        if Path(text).is_absolute():
            return [Path(text)] if Path(text).is_file() else []
        found = self._ends.get(_key(text), [])
        if len(found) < 2:
            return found
        # The whole name goes before the same one without suffix: "a.b" before "a.b.jpg".
        end = _key(text)
        return [path for path in found if _key(path.as_posix()).endswith(end)] or found

    def _refuse_twice(self, table: LabelTable, one: Row, two: Row) -> None:
        if one.label != two.label:
            raise DataError(
                f"every image of {table} must have one label, but rows {one.number} and"
                f" {two.number} call {two.image!r} {one.label!r} and {two.label!r}: remove one (a"
                " classifier gives one class per image)"
            )
        raise DataError(
            f"every image of {table} must have one row, but {two.image!r} has two, {one.number} and"
            f" {two.number}: remove one"
        )


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)


def _key(path: str) -> str:
    """Return what paths are compared by: composed, in lower case, with `/`."""
    text = unicodedata.normalize("NFC", path).casefold().replace("\\", "/")
    return re.sub(r"^(\./)+", "", text)


def _rows(rows: Sequence[Row]) -> str:
    return some([f"{row.image!r} (row {row.number})" for row in rows], _SHOWN)
