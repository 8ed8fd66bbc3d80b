"""A full disk, told from other errors: it is no trial's fault, and the user can make room."""

from __future__ import annotations

import errno
from collections.abc import Iterator

_NUMBERS = {errno.ENOSPC, errno.EDQUOT}
_SQLITE_SAYS = "database or disk is full"


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error, or one behind it, is that of a full disk or a used-up quota."""
    return any(
        (isinstance(one, OSError) and one.errno in _NUMBERS) or _SQLITE_SAYS in str(one)
        for one in _behind(error)
    )


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it; Ray keeps a task's own error as `cause`."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "cause", None)]
