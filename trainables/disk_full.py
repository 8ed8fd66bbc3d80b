"""Recognise errors of a full disk: they are no trial's fault, and the user can make room."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_NUMBERS = {errno.ENOSPC, errno.EDQUOT}


def is_disk_full(error: BaseException) -> bool:
    """Return whether a full disk or an exceeded quota caused an error, directly or not."""
    return any(isinstance(one, OSError) and one.errno in _NUMBERS for one in _error_chain(error))


def fullest(folders: Iterable[Path]) -> Path:
    """Return the folder on whose disk least space is left: an error of a full disk names none."""
    free = {}
    for folder in folders:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with suppress(OSError):
            free[folder] = shutil.disk_usage(nearest).free
    return min(free, key=free.__getitem__, default=Path())


def _error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it; Ray keeps a task's own error as `cause`."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "cause", None)]
