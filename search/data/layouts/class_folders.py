"""Find the class folders and official splits of a data folder, and the files outside of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from search.console.formatting import quote_path, some
from search.data.image_files import DataError, entries, folders, has_image_suffix
from spaces.sources import did_you_mean


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
            different classes, or a class has a name that is not UTF-8.
    """
    parts = official_splits(root, wanted)
    there = {
        split: [f.name for f in folders(part) if f.name not in ignored or f.name in (wanted or ())]
        for split, part in parts.items()
    }
    if not any(there.values()):
        raise DataError(_no_class_folders(root, parts.values()))
    for split, part in parts.items():
        if wanted:
            check_has(str(part), there[split], wanted)
        elif split not in (None, "train"):
            _check_same(parts["train"], there["train"], part, there[split])
    classes = wanted or tuple(next(iter(there.values())))
    if len(classes) < 2:
        raise DataError(_one_class(root, next(iter(parts.values())) / classes[0]))
    if odd := [ascii(name) for name in classes if not _is_text(name)]:
        raise DataError(
            f"the name of a class must be UTF-8, but {some(odd)} in {root} is not: rename the"
            " folder"
        )
    return classes, [
        ClassFolder(part / name, label, split)
        for split, part in parts.items()
        for label, name in enumerate(classes)
    ]


def _is_text(name: str) -> bool:
    """Return whether the bytes of a file's name are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}


def official_splits(root: Path, wanted: tuple[str, ...] | None = None) -> dict[str | None, Path]:
    """Find the folders of the official splits, such as train/ and test/.

    A class may be called "test", too. So these names are splits only where no wanted class has
    one of them, and where train/ stands beside another split or is the only folder.

    Returns:
        The folder of each split; the root under None where there are no official splits.

    Raises:
        DataError: a split has two folders, or there is no train folder.
    """
    names = [f.name for f in folders(root)]
    named = [name for name in names if name.lower() in _SPLIT_NAMES]
    parts: dict[str | None, Path] = {}
    for name in named:
        split = _SPLIT_NAMES[name.lower()]
        if split in parts:
            raise DataError(
                f"{root} must have one {split} folder, but has {parts[split].name}/ and {name}/:"
                " merge them, or move one away"
            )
        parts[split] = root / name
    alone = len(named) == len(names)
    if not parts or set(named) & set(wanted or ()) or not (alone or {"train"} < parts.keys()):
        return {None: root}
    if "train" not in parts:
        raise DataError(f"{root} must have a train folder beside {some(named)}, but has none")
    return parts


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
            if path not in parts.values():
                yield path, "lies beside the train folder"


def check_has(where: str, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that all wanted classes are there.

    Raises:
        DataError: some are missing.
    """
    if missing := [name for name in wanted if name not in there]:
        named = (f"{name!r}{did_you_mean(name, there)}" for name in missing)
        raise DataError(
            f"{where} must have the classes that the space lists, but lacks {', '.join(named)}"
            f" (it has {some(there)}): give another --data, or change the space's class list"
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


def _check_same(train: Path, in_train: Sequence[str], other: Path, in_other: Sequence[str]) -> None:
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
    flat = any(has_image_suffix(path) for part in parts for path in entries(part))
    what = "images but no class folders" if flat else "no images"
    return f"{root} holds {what}: {_CLASS_FOLDER.format(root=root)}"


def _one_class(root: Path, only: Path) -> str:
    inner = [path.name for path in folders(only)]
    hint = ""
    if len(inner) > 1:
        hint = f"; did you mean --data {quote_path(only)}, which has {some(inner)}?"
    return (
        f"there must be two classes or more, but {root} has one class folder, {only.name!r}{hint}"
        f" ({_CLASS_FOLDER.format(root=root)})"
    )
