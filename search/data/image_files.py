"""Find the image files below a folder, by one rule for the search, the audit and prediction.

A file is taken for an image unless its name rules that out; whether it is one, decoding shows. What
operating systems, file managers and network drives leave in folders is passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spaces.errors import SearchError
from trainables.image_formats import IMAGE_SUFFIXES, unsupported_suffix


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


def find_image_files(folder: Path) -> ImageFiles:
    """Find the files below a folder at any depth, without hidden ones; links are followed.

    Raises:
        DataError: the folder, or one in it, cannot be read.
    """
    images: list[Path] = []
    others: list[tuple[Path, str]] = []
    for path in sorted(_walk(folder)):
        reason = why_no_image(path)
        if reason is None:
            images.append(path)
        else:
            others.append((path, reason))
    return ImageFiles(images, others)


def why_no_image(path: Path) -> str | None:
    """Return why a file is not read as an image; None where it is."""
    if reason := unsupported_suffix(path.name):
        return reason
    if path.suffix.lower() in _SIDE_SUFFIXES or path.name.lower() in ("readme", "license"):
        return NOT_AN_IMAGE
    try:
        mode = path.stat().st_mode
    except OSError:
        return None  # such as a link to a file that is gone: decoding reports it
    return None if stat.S_ISREG(mode) else "is a pipe, a socket or a device"


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
    for path in entries(folder):
        try:
            if stat.S_ISDIR(path.stat().st_mode):
                found.append(path)
        except OSError as error:
            if path.suffix and path.is_symlink():  # to a file: decoding reports it
                continue
            raise DataError(
                f"{folder} holds {path.name!r}, {_broken(path, error)}: restore it, or remove it"
            ) from None
    return found


def _broken(path: Path, error: OSError) -> str:
    if not path.is_symlink():
        return f"which cannot be read ({error.strerror})"
    return f"a link to {str(path.readlink())!r}, which cannot be read ({error.strerror})"


def entries(folder: Path) -> list[Path]:
    """List the files and folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not _is_hidden(path.name))
    except OSError as error:
        raise _unreadable(error) from error


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise _unreadable(error) from error

    seen: set[Path] = set()
    for parent, inner, names in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(parent)
        if here.resolve() in seen:  # a link may point to a parent
            inner.clear()
            continue
        seen.add(here.resolve())
        inner[:] = sorted(name for name in inner if not _is_hidden(name))
        yield from (here / name for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LITTER


def _unreadable(error: OSError) -> DataError:
    return DataError(f"{error.filename} cannot be read: {error.strerror}")
