"""Find the folders of official splits, and refuse folders that are neither splits nor classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path

from search.console.formatting import quote_path, some
from search.data.image_files import DataError, entries, folders, has_image_suffix

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
}
"""Words for splits; "dev" and "eval" are those that Hugging Face's datasets take them for."""

_FILLERS = frozenset(
    ("set", "data", "dataset", "split", "images", "image", "imgs", "img", "photos", "files")
)
"""Words beside a split's in the name of its folder, as in training_set and val_images."""


def split_named(name: str) -> str | None:
    """Return the split that a word stands for, in any case: "train", "val", "test", or None."""
    return _SPLIT_OF.get(re.sub(r"[\s_-]", "", name.casefold()))


def official_splits(root: Path, wanted: Collection[str] | None = None) -> dict[str | None, Path]:
    """Find the folders of the official splits: train/ and test/, or seg_train/ and seg_test/.

    A class may be called "test", too. So such names are splits only where no wanted class has one
    of them, and where train/ stands beside another split, or beside folders without images. A
    folder of a split may hold one that holds its class folders.

    Args:
        root: The data folder.
        wanted: The classes that the space lists, if it does.

    Returns:
        The folder of each split; the root under None where there are no official splits.

    Raises:
        DataError: a split has two folders, there is no train folder, or folders cannot be classes
            because they hold the same folders.
    """
    there = folders(root)
    if set(wanted or ()) & {nfc(path.name) for path in there}:
        return {None: root}
    parts = _by_word(root, there) or _by_pattern(there)
    if not parts:
        _refuse_shared_folders(root, there)
        return {None: root}
    return {split: _descend(path) for split, path in parts.items()}


def nfc(name: str) -> str:
    """Return a name with composed characters, as macOS does not write them."""
    return unicodedata.normalize("NFC", name)


def class_folders_of(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their composed names.

    Raises:
        DataError: two have the same.
    """
    found: dict[str, Path] = {}
    for path in folders(folder):
        if nfc(path.name) in found:
            raise DataError(
                f"{folder} holds two folders named {nfc(path.name)!r}, of which one has decomposed"
                " characters: merge them"
            )
        found[nfc(path.name)] = path
    return found


def _by_word(root: Path, there: Sequence[Path]) -> dict[str | None, Path]:
    named = [path for path in there if split_named(path.name)]
    parts: dict[str | None, Path] = {}
    for path in named:
        split = split_named(path.name)
        if split in parts:
            raise DataError(
                f"{root} must have one {split} folder, but has {parts[split].name}/ and"
                f" {path.name}/: merge them, or move one away"
            )
        parts[split] = path
    others = [path for path in there if path not in named]
    if not parts or {"train"} < parts.keys():
        return parts
    if others:
        if "train" not in parts or not _holds_folders_only(parts["train"]):
            return {}
        if with_images := [path.name for path in others if _has_images(path)]:
            raise DataError(
                f"{root} must hold either splits or classes, but {parts['train'].name}/ holds"
                f" {some(class_folders_of(parts['train']))}, and beside it {some(with_images)}"
                f" {'has' if len(with_images) == 1 else 'have'} images: give --data"
                f" {quote_path(parts['train'])}, or list all with --classes if it is one"
            )
        return parts
    if "train" not in parts:
        raise DataError(
            f"{root} must have a train folder beside {some(path.name for path in named)}, but has"
            " none"
        )
    return parts


def _by_pattern(there: Sequence[Path]) -> dict[str | None, Path]:
    """Find folders whose names differ in the word for the split alone.

    A class may be called "test tube", so they hold class folders, or are all folders there are.
    """
    found: dict[str, dict[str | None, Path]] = {}
    for path in there:
        split, rest = _split_in(path.name)
        if split is not None and split not in found.setdefault(rest, {}):
            found[rest][split] = path
    return next(
        (
            parts
            for parts in found.values()
            if {"train"} < parts.keys()
            and (len(parts) == len(there) or _holds_folders_only(_descend(parts["train"])))
        ),
        {},
    )


def _split_in(name: str) -> tuple[str | None, str]:
    """Return the one split that a name has a word of, and the name's other words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.casefold().replace("hold_out", "holdout"))
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    rest = " ".join(word for word in words if word not in _SPLIT_OF and word not in _FILLERS)
    return (splits.pop() if len(splits) == 1 else None), rest


def _descend(folder: Path) -> Path:
    """Return the only folder in a folder, if that holds class folders: seg_train/seg_train."""
    inside = folders(folder)
    if len(inside) == 1 and _holds_folders_only(inside[0]) and not _has_images(folder):
        return inside[0]
    return folder


def _holds_folders_only(folder: Path) -> bool:
    return len(folders(folder)) > 1 and not _has_images(folder)


def _has_images(folder: Path) -> bool:
    return any(has_image_suffix(path) for path in entries(folder))


def _refuse_shared_folders(root: Path, there: Sequence[Path]) -> None:
    """Refuse folders of one and the same set of folders, which are no classes.

    Raises:
        DataError: there are some, or one holds the same folders as the root itself.
    """
    way_out = (
        "name them train, val and test if they are splits; or move the images of each class into"
        " one folder; or name images and labels in a table (--labels); or list them with --classes"
        " if they are"
    )
    names = {path.name: frozenset(map(nfc, _names(path))) for path in there}
    for (one, inside), (other, also) in combinations(names.items(), 2):
        if len(inside) > 1 and inside == also:
            raise DataError(
                f"{root}/{one} and {root}/{other} hold the same folders ({some(sorted(inside))}),"
                f" so that they are no classes: {way_out}"
            )
    for one, inside in names.items():
        if len(shared := inside & {nfc(name) for name in names if name != one}) > 1:
            raise DataError(
                f"{root}/{one} holds folders that {root} holds as well ({some(sorted(shared))}), so"
                f" that it is no class: {way_out}"
            )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folders(folder)]
