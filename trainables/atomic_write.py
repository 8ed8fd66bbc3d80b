"""Write a file atomically: readers see its old content or its new one, never a part of it.

And patiently: what another program holds for a moment is waited for.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from trainables.disk_full import is_disk_full

MAX_WAIT_SECONDS = 300.0
"""How long writing is tried again: a backup or a network that is away lets go within minutes."""

_TRY_EVERY_SECONDS = 1.0


@contextmanager
def write_atomically(path: Path, partial: str = ".partial") -> Iterator[Path]:
    """Yield a path to write to; at the end of the block, its file replaces the one at `path`.

    The file is flushed to the disk first, so that a power cut leaves no name without its content.
    After an error `path` is as it was before, and nothing lies beside it.

    Args:
        path: The file to write; missing parent folders are made.
        partial: What the temporary name ends with, for writers that look at a file's suffix. The
            name is one of its own, so that two writers of a file do not take each other's away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{partial}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary), temporary):
            error.filename = str(path)  # what the user knows; a full disk names no file
        raise
    finally:
        with suppress(OSError):  # a read-only disk; what was raised before says more
            temporary.unlink(missing_ok=True)


def write_patiently(write: Callable[[], None], path: Path, warn: Callable[[str], None]) -> None:
    """Call a function that writes a file, again and again while the file cannot be written.

    Args:
        write: The function; it may have written a part.
        path: The file.
        warn: Called once with why it waits, and once when it no longer does.

    Raises:
        OSError: the disk is full, or the file cannot be written after `MAX_WAIT_SECONDS`.
    """
    started, waited = monotonic(), False
    while True:
        try:
            write()
        except OSError as error:
            if is_disk_full(error) or monotonic() - started > MAX_WAIT_SECONDS:
                raise
            if not waited:
                warn(
                    f"{path} cannot be written ({error.strerror or error}): the search waits up to"
                    f" {MAX_WAIT_SECONDS / 60:.0f} minutes, and keeps what is to be written"
                )
            waited = True
            sleep(_TRY_EVERY_SECONDS)
        else:
            if waited:
                warn(f"{path} can be written again")
            return
