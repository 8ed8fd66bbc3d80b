"""Where a run keeps files: its own folder, or storage that all machines of a cluster reach.

Storage is a URL that pyarrow's file systems open (s3://, gs://, …), or the absolute path of a
shared folder. A run's files lie in a folder of its name there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from trainables.atomic_write import write_atomically

_MARK = ".classifier-search"
"""A file that comes and goes while storage is tried."""


class StorageError(ValueError):
    """Storage cannot be used."""


class Files(Protocol):
    """Named contents. A name may hold slashes; a write is whole or not at all."""

    def write(self, name: str, content: bytes) -> None:
        """Put a content under a name."""

    def read(self, name: str) -> bytes | None:
        """Return what is under a name; None where there is nothing."""

    def remove(self, name: str) -> None:
        """Remove what is under a name, if there is anything."""

    def has(self, name: str) -> bool:
        """Say whether there is something under a name."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder of this machine."""

    base: Path

    def write(self, name: str, content: bytes) -> None:
        """See `Files`."""
        with write_atomically(self.base / name) as partial:
            partial.write_bytes(content)

    def read(self, name: str) -> bytes | None:
        """See `Files`."""
        path = self.base / name
        return path.read_bytes() if path.is_file() else None

    def remove(self, name: str) -> None:
        """See `Files`."""
        (self.base / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """See `Files`."""
        return (self.base / name).is_file()


@dataclass(frozen=True)
class SharedFiles:
    """Files in storage that every machine reaches by the same URL.

    Attributes:
        url: A URL, or the absolute path of a folder.
        folder: Within it.
    """

    url: str
    folder: str = ""

    def within(self, folder: str) -> SharedFiles:
        """Return the files of a folder in this one."""
        return SharedFiles(self.url, f"{self.folder}/{folder}".lstrip("/"))

    def write(self, name: str, content: bytes) -> None:
        """See `Files`."""
        system, path = self._opened
        path = f"{path}/{name}"
        if system.type_name != "local":  # an object is there when it is whole
            with system.open_output_stream(path) as stream:
                stream.write(content)
            return
        system.create_dir(path.rpartition("/")[0], recursive=True)
        with system.open_output_stream(f"{path}.partial") as stream:
            stream.write(content)
        system.move(f"{path}.partial", path)

    def read(self, name: str) -> bytes | None:
        """See `Files`."""
        system, path = self._opened
        try:
            with system.open_input_stream(f"{path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """See `Files`."""
        if self.has(name):
            system, path = self._opened
            system.delete_file(f"{path}/{name}")

    def has(self, name: str) -> bool:
        """See `Files`."""
        from pyarrow.fs import FileType

        system, path = self._opened
        return bool(system.get_file_info(f"{path}/{name}").type == FileType.File)

    def names(self) -> list[str]:
        """Return the names of all files, ascending."""
        from pyarrow.fs import FileSelector, FileType

        system, path = self._opened
        found = system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        return sorted(f.path[len(path) + 1 :] for f in found if f.type == FileType.File)

    def try_out(self) -> None:
        """Write, read and remove a small file.

        Raises:
            StorageError: that does not work.
        """
        if not urlsplit(self.url).scheme and not self.url.startswith("/"):
            raise StorageError(
                "--storage must be a URL such as s3://bucket/folder, or the absolute path of a"
                f" folder that all machines share, but got {self.url!r}"
            )
        try:
            self.write(_MARK, b"tried")
            found = self.read(_MARK)
            self.remove(_MARK)
        # pyarrow's errors are OSError and ValueError; NotImplementedError is a scheme left out.
        except (OSError, ValueError, NotImplementedError) as error:
            raise StorageError(
                f"--storage {self.url} cannot be written to: {error}; check the address and that"
                " this machine may write there (for s3:// an instance role or AWS_* variables)"
            ) from None
        if found != b"tried":
            raise StorageError(f"--storage {self.url} does not return what was written to it")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path in it."""
        from pyarrow.fs import FileSystem  # takes a while, and few runs have storage

        system, path = FileSystem.from_uri(self.url)
        return system, f"{path}/{self.folder}".rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        """Go to other machines without the file system that was opened on this one."""
        return {"url": self.url, "folder": self.folder}
