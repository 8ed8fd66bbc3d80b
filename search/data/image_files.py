"""Find the image files below a folder, by one rule for the search, the audit and prediction.

A file is taken for an image unless its name rules that out; whether it is one, decoding shows. What
operating systems, file managers and network drives leave in folders is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spaces.errors import SearchError
from trainables.image_formats import IMAGE_SUFFIXES, SPECIAL_FILE, unsupported_suffix


class DataError(SearchError):
    """The images cannot be used as they are; the message says the rule and the way out."""


class ImageFiles(NamedTuple):
    """The files below a folder."""

    images: list[Path]
    """Files that may be images, sorted."""
    others: list[tuple[Path, str]]
    """The other files, sorted, each with the reason why it is not read."""


NOT_AN_IMAGE = "its name is not that of an image"
"""Reason of a file that is neither an image nor of a format with a reason of its own."""

LINK_UP = "is a link to a folder that it lies in"
"""Reason of a link that is not followed: it would bring the images of other classes."""

_LITTER = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "__pycache__"),
        *("@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
        "lost+found",
    )
)
"""Names, in lower case, of files and folders that systems leave; those with a dot are hidden."""

_SIDE_SUFFIXES = frozenset(
    (
        *(".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".url", ".log", ".ini", ".db"),
        *(".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".mat", ".npy", ".npz"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".parquet", ".arrow"),
        *(".py", ".ipynb", ".pkl", ".pt", ".pth", ".h5", ".hdf5", ".xls", ".xlsx", ".docx"),
        *(".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".mts"),
        *(".wav", ".mp3", ".aae", ".xmp", ".thm", ".svg", ".exe", ".sh", ".bat", ".lnk"),
    )
)
_SIDE_NAMES = frozenset(("readme", "license"))


def find_image_files(folder: Path) -> ImageFiles:
    """Find the files below a folder at any depth, without hidden ones; links are followed.

    Raises:
        DataError: the folder, or one in it, cannot be read.
    """
    images: list[Path] = []
    others: list[tuple[Path, str]] = []
    for path, problem in sorted(_walk(folder, set(), folder.resolve())):
        reason = problem or why_no_image(path.name)
        if reason is None:
            images.append(path)
        else:
            others.append((path, reason))
    return ImageFiles(images, others)


def why_no_image(name: str) -> str | None:
    """Return why a file of some name is not read as an image; None where it is."""
    if reason := unsupported_suffix(name):
        return reason
    is_side_file = Path(name).suffix.lower() in _SIDE_SUFFIXES or name.lower() in _SIDE_NAMES
    return NOT_AN_IMAGE if is_side_file else None


def has_image_suffix(path: Path) -> bool:
    """Return whether a file's name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def folders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be read, or a link in it that may stand for a folder leads
            nowhere.
    """
    found = []
    for entry in _scan(folder):
        path = folder / entry.name
        if _is_folder(entry):
            found.append(path)
        elif entry.is_symlink() and not path.suffix and not _exists(path):
            raise DataError(
                f"{folder} holds {entry.name!r}, a link to {str(path.readlink())!r}, which cannot"
                " be read: restore it, or remove it"
            )
    return found


def entries(folder: Path) -> list[Path]:
    """List the files and folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    return [folder / entry.name for entry in _scan(folder)]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder's entries, which know what they are: a `stat` of each takes long by network."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not _is_hidden(entry.name)), key=lambda one: one.name
            )
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _walk(folder: Path, seen: set[Path], top: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder, and why each is not to be opened; "" where it may be.

    Args:
        folder: The folder.
        seen: What it and its links led to so far.
        top: The folder that the walk began with, without links in its path.
    """
    real = folder.resolve()
    if seen and top.is_relative_to(real):
        yield folder, LINK_UP
        return
    if real in seen:
        return
    seen.add(real)
    for entry in _scan(folder):
        path = folder / entry.name
        if _is_folder(entry):
            yield from _walk(path, seen, top)
        else:  # a link to a file that is gone is reported when it is decoded
            is_special = not entry.is_symlink() and not entry.is_file()
            yield path, SPECIAL_FILE if is_special else ""


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LITTER
