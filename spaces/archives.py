"""Open the folder that an option names; an archive is unpacked safely into a cache, once."""

from __future__ import annotations

import bz2
import difflib
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from spaces.downloads import download_once
from spaces.errors import SourceError

MAX_FILES = 2_000_000
"""Files in an archive; more are refused."""
MAX_RATIO, MIN_SUSPICIOUS_BYTES = 100, 2**30
"""An archive may unpack to so many times its size, or to so many bytes: more is a bomb."""
_ZIPS = (".zip",)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
_FOREIGN = (".rar", ".7z", ".gz", ".bz2", ".xz", ".zst")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of tables of labels."""
_BLOCK_BYTES = 2**20
_RESERVED_BYTES = 2**28
"""Bytes that unpacking leaves free on the disk."""
_DAMAGED = (
    *(EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)
_LITTER = frozenset(("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"))


class ArchiveError(SourceError):
    """There is no folder or archive, or it cannot be unpacked."""


def is_archive(path: Path) -> bool:
    """Return whether a file's name is that of an archive that can be unpacked."""
    return path.name.lower().endswith((*_ZIPS, *_TARS))


def open_folder(path: Path, cache: Path, option: str = "--data") -> Path:
    """Return a folder, or the one that an archive is unpacked into.

    Args:
        path: The folder or the archive.
        cache: The folder of downloads.
        option: The option that names it.

    Raises:
        ArchiveError: there is neither, or the archive cannot be unpacked.
    """
    path = Path(os.path.expanduser(path))  # noqa: PTH111 (raises nothing)
    if path.is_dir():
        return path
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [one.name for one in beside if one.is_dir() or is_archive(one)]
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ArchiveError(f"{option} must name a folder, but there is no {path}{hint}")
    if is_archive(path):
        return unpack(path, cache)
    hint = ""
    if path.name.lower().endswith(_FOREIGN):
        hint = ", packed in a way that is not read here: unpack it, and give the folder"
    elif path.suffix.lower() in TABLE_SUFFIXES:
        hint = f": if it is a table of labels, give it with --labels {path}, and the folder here"
    raise ArchiveError(f"{option} must name a folder or an archive, but {path} is a file{hint}")


def unpack(path: Path, cache: Path) -> Path:
    """Unpack an archive once, and return the folder with its content.

    An only folder in it is entered, as archives of a folder are usual. The cache folder has the
    archive's digest, so that one that was moved is not unpacked again, and a changed one is.

    Args:
        path: The archive.
        cache: The folder of downloads.

    Raises:
        ArchiveError: it is damaged, encrypted or unsafe, or the disk is too small.
    """
    try:
        digest = _digest(path)
        target = cache / "archives" / digest / _stem(path)
        download_once(target, lambda folder: _unpack(path, folder / target.name))
    except (OSError, *_DAMAGED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            raise ArchiveError(f"{path} cannot be unpacked into {cache}: {reason}") from error
        raise ArchiveError(
            f"{path} is damaged ({reason}): copy or download it again, or unpack it yourself and"
            " give the folder"
        ) from error
    return _enter(target)


def _unpack(path: Path, target: Path) -> None:
    print(f"unpacking {path} …", file=sys.stderr)
    target.mkdir()
    budget = _Budget(path, target)
    read = _zip_members if path.name.lower().endswith(_ZIPS) else _tar_members
    with closing(read(path, budget)) as members:
        for name, size, file in members:
            with closing(file):
                parts = _safe_parts(path, name)
                if {parts[0], parts[-1]} & _LITTER or parts[-1].startswith("._"):
                    continue
                budget.claim(size)
                place = target.joinpath(*parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as out:
                    shutil.copyfileobj(file, out, _BLOCK_BYTES)


class _Member(NamedTuple):
    name: str
    size: int
    file: IO[bytes]


class _Budget:
    """What may be unpacked still."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._packed = path.stat().st_size
        self._limit = max(MAX_RATIO * self._packed, MIN_SUSPICIOUS_BYTES)
        self._files = self._bytes = 0

    def claim(self, size: int) -> None:
        """Count a file before it is unpacked.

        Raises:
            ArchiveError: there are too many, or the disk has no room for it.
        """
        self._files += 1
        if self._files > MAX_FILES:
            raise ArchiveError(
                f"an archive must have at most {MAX_FILES:,} files, but {self._path} has more:"
                " unpack it yourself, and give the folder"
            )
        free = shutil.disk_usage(self._target).free
        if size > free - _RESERVED_BYTES:
            raise ArchiveError(
                f"{self._path} does not fit on the disk of {self._target.parents[3]}, where"
                f" {free / 1e9:.1f} GB are free: make room, or set CLASSIFIER_SEARCH_CACHE to a"
                " folder on another disk"
            )

    def use(self, n_bytes: int) -> None:
        """Count bytes of the content.

        Raises:
            ArchiveError: there are too many.
        """
        self._bytes += n_bytes
        if self._bytes > self._limit:
            raise ArchiveError(
                f"an archive must unpack to at most {MAX_RATIO} times its size, but {self._path}"
                f" ({self._packed / 1e6:.1f} MB) unpacks to more than {self._limit / 1e9:.1f} GB:"
                " if you trust it, unpack it yourself and give the folder"
            )


def _safe_parts(path: Path, name: str) -> tuple[str, ...]:
    """Divide a member's name at its slashes.

    Raises:
        ArchiveError: it leads out of the folder that the archive is unpacked into.
    """
    if "/" not in name:
        name = name.replace("\\", "/")  # as some programs on Windows write it
    parts = tuple(part for part in PurePosixPath(name).parts if part != ".")
    is_outside = name.startswith("/") or ".." in parts or "\0" in name or name[1:3] in (":/", ":\\")
    if is_outside or not parts:
        raise ArchiveError(
            f"{path} must hold files below its own folder only, but has {name!r}: do not trust it,"
            " or unpack it yourself and give the folder"
        )
    return parts


def _zip_members(path: Path, budget: _Budget) -> Generator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _link(path, info.filename)
            if info.flag_bits & 1:
                raise ArchiveError(f"{path} is encrypted: unpack it yourself, and give the folder")
            budget.use(info.file_size)  # no more than this is read
            try:
                file = archive.open(info)
            except NotImplementedError as error:
                raise ArchiveError(
                    f"{path} is packed by a method that cannot be read ({error}): unpack it"
                    " yourself, and give the folder"
                ) from None
            yield _Member(_zip_name(info), info.file_size, file)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name, which many programs write in UTF-8 without saying so."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


class _Bounded:
    """A tar's decompressed stream, of bounded length: also a header may be a bomb."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._budget.use(len(block))
        return block


def _decompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.open(path)
    return lzma.open(path) if head.startswith(b"\xfd7zXZ\0") else path.open("rb")


def _tar_members(path: Path, budget: _Budget) -> Generator[_Member]:
    with (
        _decompressed(path) as stream,
        tarfile.open(fileobj=_Bounded(stream, budget), mode="r|") as archive,  # type: ignore[call-overload]
    ):
        for info in archive:
            if info.isdir():
                continue
            if info.issym() or info.islnk():
                raise _link(path, info.name)
            file = archive.extractfile(info) if info.isfile() else None
            if file is None:
                raise ArchiveError(
                    f"{path} must hold files and folders only, but {info.name!r} is a device or a"
                    " pipe: do not trust it"
                )
            yield _Member(info.name, info.size, file)


def _link(path: Path, name: str) -> ArchiveError:
    return ArchiveError(
        f"{path} must hold files and folders only, but {name!r} is a link: unpack it yourself, and"
        " give the folder"
    )


def _enter(target: Path) -> Path:
    """Enter the only folder in a folder, as often as there is one that cannot be a class's."""
    folder = target
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        has_more = any(
            one.is_dir() or one.suffix.lower() in TABLE_SUFFIXES for one in inside[0].iterdir()
        )
        if not has_more and inside[0].name != target.name:
            return folder
        folder = inside[0]


def _stem(path: Path) -> str:
    """Return the name of an archive without its suffixes."""
    name = path.name
    suffix = max((s for s in (*_ZIPS, *_TARS) if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)] or "archive"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
