"""Find the tables in a folder of images as Hugging Face's `datasets` lays it out."""

from __future__ import annotations

from pathlib import Path

from search.data.image_files import DataError, find_image_files
from search.data.layouts.label_table import (
    MissingColumnError,
    find_table,
    is_usual_name,
    read_rows,
)
from search.data.layouts.split_folders import official_splits
from spaces.label_tables import LabelTable

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of Hugging Face's image folders, in the data folder or in each split's."""


def find_metadata(root: Path) -> list[tuple[str | None, LabelTable]]:
    """Find the tables of an image folder as Hugging Face's `datasets` defines it.

    Returns:
        The table of each official split, or the one of the folder under None; none where there are
        none with the column `file_name` and one that is called as labels are: captions are none.

    Raises:
        DataError: one has the column `file_name` but cannot be read, or not all splits have one.
    """
    found: list[tuple[str | None, LabelTable]] = []
    try:
        parts = official_splits(root)
    except DataError:  # it may be none where classes are given; who looks for class folders says so
        parts = {}
    for split, folder in {None: root, **parts}.items():
        for path in (folder / name for name in _METADATA):
            if path.is_file() and _has_labels(table := LabelTable(path, image="file_name"), root):
                found.append((split, table))
                break
        if None in [split for split, _ in found]:
            return found
    labelled = {split for split, _ in found}
    for split, folder in parts.items():
        if labelled and split not in labelled and find_image_files(folder).images:
            raise DataError(
                f"{found[0][1]} has labels, but {folder} has images and no such table: add one, or"
                " move that folder away (images without labels can be given to"
                " search.predict afterwards)"
            )
    return found


def _has_labels(table: LabelTable, root: Path) -> bool:
    """Return whether a table of metadata has labels.

    Raises:
        DataError: it is one of an image folder, but cannot be read.
    """
    try:
        _, columns = read_rows(table, root)
    except MissingColumnError:
        return False
    except DataError:
        if b"file_name" in find_table(Path(table.path or ""), root).read_bytes():
            raise
        return False
    return is_usual_name("label", columns.label)
