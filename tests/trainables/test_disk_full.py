from __future__ import annotations

import errno

import pytest

from trainables.disk_full import is_disk_full

FULL = OSError(errno.ENOSPC, "No space left on device")


def caused_by(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("cannot be written") from cause
    except ValueError as outer:
        return outer


class TaskError(Exception):
    """An error of a task, which Ray wraps like this."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        caused_by(FULL),
        TaskError(FULL),
        caused_by(TaskError(caused_by(FULL))),
    ],
)
def test_is_disk_full(error: Exception) -> None:
    assert is_disk_full(error)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"), caused_by(ValueError("full of bees")), OSError()],
)
def test_is_disk_full_is_false_for_other_errors(error: Exception) -> None:
    assert not is_disk_full(error)
