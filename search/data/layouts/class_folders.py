"""Find the class folders and official splits of a data folder, and the files outside of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

from search.console.formatting import quote_path, some
from search.data.image_files import DataError, entries, folders, has_image_suffix
from search.data.layouts.split_folders import class_folders_of, nfc, official_splits
from spaces.archives import TABLE_SUFFIXES, is_archive
from spaces.sources import did_you_mean

_NOT_IN_A_LINE = frozenset(("Cc", "Zl", "Zp", "Cs"))
"""Unicode's categories of control characters, separators of lines and paragraphs, and what stands
for bytes that are no UTF-8."""


class ClassFolder(NamedTuple):
    """A folder with the images of one class, and of one official split if there are any."""

    path: Path
    label: int
    """Index of the class; -1 where the images are unlabelled."""
    split: str | None


def find_class_folders(
    root: Path, wanted: tuple[str, ...] | None, ignored: Sequence[str]
) -> tuple[tuple[str, ...], list[ClassFolder]]:
    """Find the classes of `root`, or of its train/, val/ and test/ folders.

    Args:
        root: the data folder.
        wanted: the classes to find, in this order; None finds all.
        ignored: names of folders that are no classes unless they are wanted.

    Returns:
        The classes, and the folders of their images.

    Raises:
        DataError: there are fewer than two classes, wanted ones are missing, the splits have
            different classes, or a class has an unusable name: see `check_names`.
    """
    wanted = None if wanted is None else tuple(map(nfc, wanted))
    parts = official_splits(root, wanted)
    there = {
        split: {
            name: path
            for name, path in class_folders_of(part).items()
            if name not in ignored or name in (wanted or ())
        }
        for split, part in parts.items()
    }
    if not any(there.values()):
        raise DataError(_no_class_folders(root, parts.values()))
    for split, part in parts.items():
        if wanted:
            check_has(str(part), tuple(there[split]), wanted)
        elif split not in (None, "train"):
            _check_same(parts["train"], there["train"], part, there[split])
    classes = wanted or class_order(next(iter(there.values())))
    if len(classes) < 2:
        raise DataError(_one_class(root, next(iter(there.values()))[classes[0]]))
    check_names(str(root), classes)
    return classes, [
        ClassFolder(there[split][name], label, split)
        for split in parts
        for label, name in enumerate(classes)
    ]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of classes: as numbers where all are whole numbers, else as text."""
    names = sorted(names)
    if all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names):
        names.sort(key=int)
    return tuple(names)


def check_names(where: str, classes: Iterable[str]) -> None:
    """Check that the names of classes can be shown everywhere, in one line each.

    Raises:
        DataError: one has control characters, or bytes that are no UTF-8.
    """
    if odd := [ascii(name) for name in classes if any(category(c) in _NOT_IN_A_LINE for c in name)]:
        raise DataError(
            "the name of a class must be one line of UTF-8 without control characters, but"
            f" {where} has {some(odd)}: rename it"
        )


def unused_files(root: Path, parts: dict[str | None, Path]) -> Iterator[tuple[Path, str]]:
    """Find images and folders that lie outside the class folders.

    Args:
        root: the data folder.
        parts: its official splits, as `official_splits` returns them.

    Yields:
        The path of each, and why it is not used.
    """
    for part in {root, *parts.values()}:
        for path in entries(part):
            if has_image_suffix(path) and path.is_file():
                yield path, "lies in no class folder"
    if None not in parts:
        for path in folders(root):
            if not any(part.is_relative_to(path) for part in parts.values()):
                yield path, "lies beside the train folder"


def check_has(where: str, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that all wanted classes are there.

    Raises:
        DataError: some are missing.
    """
    if missing := [name for name in wanted if name not in there]:
        named = (f"{name!r}{did_you_mean(name, there)}" for name in missing)
        raise DataError(
            f"{where} must have the classes that --classes or the space lists, but lacks"
            f" {', '.join(named)} (it has {some(there)}): give another --data, or change that list"
        )


def check_known(where: str, there: Iterable[str], classes: Sequence[str]) -> None:
    """Check that every folder is named after a class.

    Raises:
        DataError: some are not.
    """
    if unknown := [name for name in there if name not in classes]:
        named = (f"{name!r}{did_you_mean(name, classes)}" for name in unknown)
        raise DataError(
            f"every folder of {where} must be named after a class ({some(classes)}), but it has"
            f" {', '.join(named)}; images of unknown class go in a folder without folders"
        )


def _check_same(
    train: Path, in_train: Collection[str], other: Path, in_other: Collection[str]
) -> None:
    if not in_other and any(map(has_image_suffix, entries(other))):
        raise DataError(
            f"{other} must have class folders as {train} has, but holds images without labels: give"
            f" --data {train}, and these images to search.predict afterwards, or as --external"
        )
    only_one = [f"{name!r} is only in {train}" for name in in_train if name not in in_other]
    only_one += [f"{name!r} is only in {other}" for name in in_other if name not in in_train]
    if only_one:
        raise DataError(
            f"{train} and {other} must have the same class folders, but {some(only_one)}:"
            " add what is missing, or move the rest away"
        )


_CLASS_FOLDER = (
    "a class folder is named after its class and holds its images, such as"
    " {root}/cat/1.jpg and {root}/dog/1.jpg"
)


def _no_class_folders(root: Path, parts: Iterable[Path]) -> str:
    """Say what a folder without class folders holds instead, and how to give that."""
    inside = [path for part in {root, *parts} for path in entries(part)]
    what = "images but no class folders" if any(map(has_image_suffix, inside)) else "no images"
    return "; ".join([f"{root} holds {what}: {_CLASS_FOLDER.format(root=root)}", *_hints(inside)])


def _hints(inside: Sequence[Path]) -> Iterator[str]:
    """Say how to use what lies in a folder beside or instead of class folders."""
    images = [path for path in inside if has_image_suffix(path)]
    if tables := sorted(path for path in inside if path.suffix.lower() in TABLE_SUFFIXES):
        yield f"if {tables[0].name} names images and labels, give --labels {quote_path(tables[0])}"
    elif named := _named_after_classes(images):
        yield (
            f"if the names begin with the classes ({some(named)}), move the images into folders, or"
            " list them in a table with the columns image,label for --labels"
        )
    elif images:
        yield "or give a table with the columns image,label by --labels"
    if archives := sorted(path for path in inside if is_archive(path)):
        archive = archives[0]
        yield f"to use what is packed in {archive.name}, give --data {quote_path(archive)}"


def _named_after_classes(images: Sequence[Path]) -> list[str]:
    """Return the words before the numbers in names such as cat.0.jpg, if most have some."""
    matches = [re.match(r"([^\W\d_][\w-]*?)[ ._-]*\d+\b", path.name) for path in images]
    words = [match[1] for match in matches if match]
    repeat = 1 < len(set(words)) <= len(words) / 2
    return sorted(set(words)) if repeat and len(words) >= len(images) / 2 else []


def _one_class(root: Path, only: Path) -> str:
    inner = [path.name for path in folders(only)]
    hint = ""
    if len(inner) > 1:
        hint = f"; did you mean --data {quote_path(only)}, which has {some(inner)}?"
    message = (
        f"there must be two classes or more, but {root} has one class folder, {only.name!r}{hint}"
        f" ({_CLASS_FOLDER.format(root=root)})"
    )
    return "; ".join([message, *_hints(entries(root))])
