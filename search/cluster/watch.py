"""Notice that one of Ray's own processes has ended, and say in one line why work was lost.

Ray's library ends the program some time after its raylet or its GCS, without a word that helps.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

_SERVICES = {"raylet": "the raylet, which runs Ray's workers", "gcs_server": "Ray's control store"}
"""What Ray's processes are, by their names."""

_LOOK_EVERY_SECONDS = 0.2

_MARK = "CLASSIFIER_SEARCH_SESSION"
"""Environment variable of the processes of a Ray session that this process has started."""

_marks: list[str] = []
"""Its values, for the sessions that this process has started."""


@contextmanager
def marking_processes() -> Iterator[None]:
    """Mark the processes that are started within the block, and those that they start."""
    mark = uuid4().hex
    _marks.append(mark)
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(_MARK, None)


def end_marked_processes() -> None:
    """End what is left of the Ray sessions that this process has started, on Linux.

    Where the raylet or the control store was killed, the others notice it late: some after minutes.
    """
    marks = {f"{_MARK}={mark}".encode() for mark in _marks}
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with suppress(OSError):  # it has ended, or is another user's
            if pid != os.getpid() and not marks.isdisjoint(path.read_bytes().split(b"\0")):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def watching_services(on_lost: Callable[[str], None]) -> Iterator[None]:
    """Call a function, once, when a service that this process has started ends within the block.

    Args:
        on_lost: Called in another thread, with what has ended.
    """
    services = dict(_find_services())
    ended = Event()

    def watch() -> None:
        while not ended.wait(_LOOK_EVERY_SECONDS):
            for pid, name in services.items():
                if _read_stat(pid)[:1] in ("", "Z", "X") and not ended.is_set():
                    on_lost(f"{_SERVICES[name]} (process {pid})")
                    return

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def describe_loss(error: BaseException) -> str | None:
    """Describe in one line why Ray lost a task or an actor; None for any other error."""
    from ray import exceptions

    cause: BaseException = error
    if isinstance(cause, exceptions.RayTaskError) and isinstance(cause.cause, exceptions.RayError):
        cause = cause.cause
    if isinstance(cause, exceptions.OutOfMemoryError):
        return (
            "the machine's memory is full, and Ray ended a worker again and again: end what else"
            " runs here, or search with fewer trials in parallel (--max-concurrent 1)"
        )
    if isinstance(cause, exceptions.WorkerCrashedError | exceptions.RayActorError):
        return (
            "a worker process of Ray was killed again and again, most likely by a system without"
            " memory left: end what else runs here, or search with fewer trials in parallel"
            " (--max-concurrent 1)"
        )
    if isinstance(cause, exceptions.NodeDiedError | exceptions.RaySystemError):
        return "Ray's session has ended: a node or one of its own processes was lost"
    return None


def _find_services() -> Iterator[tuple[int, str]]:
    """Yield id and name of the children of this process that are services of Ray, on Linux."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        pid = int(path.parent.name)
        try:
            name = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # it has ended
            continue
        if name in _SERVICES and _read_stat(pid).split()[1:2] == [str(os.getpid())]:
            yield pid, name


def _read_stat(pid: int) -> str:
    """Return a process's state and what follows it, from its parent on; "" where it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:  # such as too many open files: it cannot be known
        return "?"
    return text.rpartition(")")[2].strip()
