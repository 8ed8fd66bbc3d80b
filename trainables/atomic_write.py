"""Write a file atomically: readers see its old content or its new one, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: Path, partial: str = ".partial") -> Iterator[Path]:
    """Yield a path to write to; at the end of the block, its file replaces the one at `path`.

    The file is flushed to the disk first, so that a power cut leaves no name without its content.
    After an error `path` is as it was before, and nothing lies beside it.

    Args:
        path: The file to write; missing parent folders are made.
        partial: What the temporary name ends with, for writers that look at a file's suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + partial)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
