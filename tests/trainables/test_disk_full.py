"""A full disk is told from other errors, however deep it lies."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from trainables.disk_full import is_disk_full

FULL = OSError(errno.ENOSPC, "No space left on device")


def behind(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("cannot be written") from cause
    except ValueError as outer:
        return outer


class TaskError(Exception):
    """As Ray wraps what a task raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
        behind(FULL),
        TaskError(FULL),
        behind(TaskError(behind(FULL))),
    ],
)
def test_full(error: Exception) -> None:
    assert is_disk_full(error)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"), behind(ValueError("full of bees")), OSError()],
)
def test_not_full(error: Exception) -> None:
    assert not is_disk_full(error)
