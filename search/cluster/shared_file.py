"""A file of the driver's machine that every machine of a cluster maps: each gets its own copy.

For images that the object store is too small for, where machines share no folder.
"""

from __future__ import annotations

import fcntl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray

from search.cluster.nodes import on_driver_node
from trainables.atomic_write import write_atomically

_CHUNK_BYTES = 64 * 2**20
_FOLDER = "classifier-search"
"""In the machine's folder for temporary files; holds the copy of one run at a time."""


class FileReader:
    """Hands out parts of a file; lives on the machine that has it."""

    def read(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """Return some bytes of a file."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(n_bytes)


@dataclass(frozen=True)
class SharedFile:
    """A file, and how machines that do not have it come by it.

    Attributes:
        path: On the driver's machine.
        size_bytes: Of the file.
        machine: The driver's, by Ray's node id.
        reader: Actor handle of `FileReader`.
        key: Names this file among those of all runs.
    """

    path: Path
    size_bytes: int
    machine: str
    reader: Any
    key: str

    def local_path(self) -> Path:
        """Return the file's path on this machine; the first who asks copies it."""
        if ray.get_runtime_context().get_node_id() == self.machine:
            return self.path
        folder = Path(tempfile.gettempdir()) / _FOLDER
        folder.mkdir(exist_ok=True)
        copy = folder / f"{self.key}{self.path.suffix}"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.is_file():
                for older in folder.glob(f"*{self.path.suffix}*"):
                    older.unlink()  # who still maps it keeps it
                self._copy_to(copy)
        return copy

    def _copy_to(self, copy: Path) -> None:
        with write_atomically(copy) as partial, partial.open("wb") as file:
            for offset in range(0, self.size_bytes, _CHUNK_BYTES):
                file.write(ray.get(self.reader.read.remote(self.path, offset, _CHUNK_BYTES)))


def share_file(path: Path) -> SharedFile:
    """Make a file of this machine, the driver's, one that all machines can map."""
    reader = ray.remote(num_cpus=0)(FileReader).options(
        scheduling_strategy=on_driver_node(), max_concurrency=4
    )
    machine = ray.get_runtime_context().get_node_id()
    return SharedFile(path, path.stat().st_size, machine, reader.remote(), uuid4().hex)
