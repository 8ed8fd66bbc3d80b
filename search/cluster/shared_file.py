"""Data that all workers of a run read: objects in Ray's store, and files that they map.

A file takes the place of the object store where that is too small for the images. Each node of a
cluster without a common folder makes its own copy of it.
"""

from __future__ import annotations

import fcntl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import numpy as np
import ray

from search.cluster.nodes import on_driver_node
from trainables.atomic_write import write_atomically

T = TypeVar("T")

_CHUNK_BYTES = 64 * 2**20
_FOLDER = "classifier-search"
"""In a node's folder for temporary files; holds the copy of the latest run."""


@dataclass(frozen=True)
class StoredObject(Generic[T]):
    """An object in Ray's object store.

    Attributes:
        reference: Ray's reference to it.
    """

    reference: ray.ObjectRef[T]

    @classmethod
    def put(cls, value: T) -> StoredObject[T]:
        """Put an object into the store."""
        return cls(ray.put(value))

    def open(self) -> T:
        """Return the object; its arrays are read-only, and shared by the workers of a node."""
        value: T = ray.get(self.reference)
        return value


@dataclass(frozen=True)
class MappedFile:
    """A NumPy array in a file that all workers reach by its path.

    Attributes:
        path: The file, in NumPy's format.
    """

    path: Path

    def open(self) -> np.ndarray:
        """Map the file."""
        array: np.ndarray = np.load(self.path, mmap_mode="r")
        return array


@dataclass(frozen=True)
class SharedFile:
    """A NumPy array in a file of the driver's node, which other nodes copy before they map it.

    Attributes:
        path: The file on the driver's node, in NumPy's format.
        size_bytes: Size of the file.
        node: Ray's id of the driver's node.
        reader: Actor handle of `FileReader`.
        key: Names this file among those of all runs.
    """

    path: Path
    size_bytes: int
    node: str
    reader: Any
    key: str

    def open(self) -> np.ndarray:
        """Map the file, or this node's copy of it."""
        return MappedFile(self.local_path()).open()

    def local_path(self) -> Path:
        """Return the file's path on this node, after copying it if no worker has before."""
        if ray.get_runtime_context().get_node_id() == self.node:
            return self.path
        folder = Path(tempfile.gettempdir()) / _FOLDER
        folder.mkdir(exist_ok=True)
        copy = folder / f"{self.key}{self.path.suffix}"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.is_file():
                for older in folder.glob(f"*{self.path.suffix}*"):
                    older.unlink()  # a process that still maps it can still read it
                self._copy_to(copy)
        return copy

    def _copy_to(self, copy: Path) -> None:
        with write_atomically(copy) as partial, partial.open("wb") as file:
            for offset in range(0, self.size_bytes, _CHUNK_BYTES):
                file.write(ray.get(self.reader.read.remote(self.path, offset, _CHUNK_BYTES)))


class FileReader:
    """Actor on the driver's node that reads parts of a file for other nodes."""

    def read(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """Return some bytes of a file."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(n_bytes)


def share_file(path: Path) -> SharedFile:
    """Make a NumPy file of the driver's node available to all nodes."""
    reader = ray.remote(num_cpus=0)(FileReader).options(
        scheduling_strategy=on_driver_node(), max_concurrency=4
    )
    node = ray.get_runtime_context().get_node_id()
    return SharedFile(path, path.stat().st_size, node, reader.remote(), uuid4().hex)
