"""Read and write a run's files: in a local folder, or in storage that all nodes reach.

Storage is a URL that pyarrow's file systems open (s3://, gs://, …), or the absolute path of a
shared folder. A run's files are in a folder of its name there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from spaces.errors import SearchError
from trainables.atomic_write import write_atomically

_PROBE_FILE = ".classifier-search"
"""Beginning of the name of the file that `SharedFiles.try_out` writes, reads and removes."""


class StorageError(SearchError):
    """Storage cannot be written to or read."""


class Files(Protocol):
    """Named contents. A name may contain slashes; a write is atomic."""

    def write(self, name: str, content: bytes) -> None:
        """Write the content of a name."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a name; None where there is none."""

    def remove(self, name: str) -> None:
        """Remove a name, if it exists."""

    def has(self, name: str) -> bool:
        """Return whether a name exists."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in a local folder."""

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
    """Files in storage that all nodes reach by the same URL.

    Attributes:
        url: A URL, or the absolute path of a folder.
        folder: Folder within it.
    """

    url: str
    folder: str = ""

    def within(self, folder: str) -> SharedFiles:
        """Return the files of a subfolder."""
        return SharedFiles(self.url, f"{self.folder}/{folder}".lstrip("/"))

    def is_folder(self, path: Path) -> bool:
        """Return whether these are the files of a folder of this machine."""
        url = urlsplit(self.url)
        return (
            url.scheme in ("", "file") and Path(url.path, self.folder).resolve() == path.resolve()
        )

    def write(self, name: str, content: bytes) -> None:
        """See `Files`."""
        system, path = self._opened
        path = f"{path}/{name}"
        if system.type_name != "local":  # an object store writes atomically
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

    def is_empty(self) -> bool:
        """Return whether the folder holds nothing, or does not exist."""
        from pyarrow.fs import FileSelector

        system, path = self._opened
        return not system.get_file_info(FileSelector(path, allow_not_found=True))

    def seconds_unchanged(self) -> float:
        """Return how long ago a file of the folder was written last, by the clock of the storage.

        0 where the storage does not say.
        """
        from pyarrow.fs import FileSelector

        system, path = self._opened
        found = system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        last = max((info.mtime_ns or 0 for info in found if info.is_file), default=0)
        top, name = SharedFiles(self.url), f"{_PROBE_FILE}-{uuid4().hex}"
        top.write(name, b"now")
        system, path = top._opened
        now = system.get_file_info(f"{path}/{name}").mtime_ns or 0
        top.remove(name)
        return (now - last) / 1e9 if now and last else 0.0

    def delete(self) -> None:
        """Remove the folder and all its files, if it exists."""
        from pyarrow.fs import FileType

        system, path = self._opened
        if system.get_file_info(path).type == FileType.Directory:
            system.delete_dir(path)

    def try_out(self) -> None:
        """Write, read and remove a small file at the URL itself: the folder within is not made.

        Raises:
            StorageError: one of these fails.
        """
        if not urlsplit(self.url).scheme and not self.url.startswith("/"):
            raise StorageError(
                "--storage must be a URL such as s3://bucket/folder, or the absolute path of a"
                f" folder that all nodes reach, but got {self.url!r}"
            )
        top, name = SharedFiles(self.url), f"{_PROBE_FILE}-{uuid4().hex}"
        try:
            top.write(name, b"test")
            found = top.read(name)
            top.remove(name)
        # pyarrow's errors are OSError and ValueError; NotImplementedError is an unknown scheme.
        except (OSError, ValueError, NotImplementedError) as error:
            raise StorageError(
                f"--storage {self.url} cannot be written to: {error}; check the address and that"
                " this machine may write there (for s3:// an instance role or AWS_* variables)"
            ) from None
        if found != b"test":
            raise StorageError(f"--storage {self.url} does not return what was written to it")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path in it."""
        from pyarrow.fs import FileSystem  # slow to import, and few runs have storage

        system, path = FileSystem.from_uri(self.url)
        return system, f"{path}/{self.folder}".rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        """Return the state to pickle: another node opens the file system itself."""
        return {"url": self.url, "folder": self.folder}
