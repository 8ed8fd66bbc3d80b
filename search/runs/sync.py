"""Keep a copy of the run folder in shared storage, for when the head node is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from search.runs.run_folder import CHECKPOINT, ENVIRONMENT, LOCK, STUDY, is_without_result
from search.runs.storage import LocalFiles, SharedFiles

EVERY_SECONDS = 60.0
"""Seconds between two updates of the copy."""

_SKIPPED_FOLDER, _SKIPPED_SUFFIXES = "cache/", (".partial", CHECKPOINT)
"""Files that can be made again, that are being written, and that trials save in storage."""

_MAX_SILENT_UPDATES = 3
"""After this many times without an update a run without result counts as ended."""


@contextmanager
def synced(
    folder: Path,
    shared: SharedFiles | None,
    warn: Callable[[str], None],
    every_seconds: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Copy new and changed files of a run folder to storage, every so often and at the end.

    Args:
        folder: The run folder.
        shared: The run's folder in storage; None copies nothing.
        warn: Called when storage fails; the run continues.
        every_seconds: Time between two updates.
    """
    if shared is None:
        yield
        return
    sync, ended = _Sync(folder, shared, warn), Event()

    def update_often() -> None:
        while not ended.wait(every_seconds):
            sync.update()

    thread = Thread(target=update_often, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sync.update()
        with suppress(OSError):  # that storage cannot be written to was a warning
            shared.remove(LOCK)


def is_abandoned(shared: SharedFiles, local: Path) -> bool:
    """Return whether a copy is that of a run that was killed before its first result.

    A command that works on a run writes its lock's heartbeat to storage as often as all else.

    Args:
        shared: The run's folder in storage.
        local: A run's folder that no command works on; may be missing. Where it is that of the same
            run, the copy is abandoned as well.
    """
    names = shared.names()
    if ENVIRONMENT not in names or not is_without_result({name.split("/")[0] for name in names}):
        return False
    environment = LocalFiles(local).read(ENVIRONMENT)
    if environment is not None and environment == shared.read(ENVIRONMENT):
        return True
    # Where the run's file system cannot lock, there is no heartbeat that could have ended.
    return LOCK in names and shared.seconds_unchanged() > _MAX_SILENT_UPDATES * EVERY_SECONDS


def fetch(shared: SharedFiles, folder: Path) -> None:
    """Copy a run from storage into a folder."""
    local = LocalFiles(folder)
    for name in shared.names():
        content = None if name == LOCK or _is_skipped(name) else shared.read(name)
        if content is not None:
            local.write(name, content)


class _Sync:
    def __init__(self, folder: Path, shared: SharedFiles, warn: Callable[[str], None]) -> None:
        self._folder, self._shared, self._warn = folder, shared, warn
        self._copied: dict[str, tuple[int, int]] = {}
        self._is_behind = False

    def update(self) -> None:
        """Copy the files that changed since the last update."""
        try:
            for path in sorted(self._folder.rglob("*")):
                self._copy(path)
            self._is_behind = False
        except OSError as error:  # pyarrow's errors as well
            if not self._is_behind:
                self._warn(f"the run's files cannot be copied to {self._shared.url}: {error}")
            self._is_behind = True

    def _copy(self, path: Path) -> None:
        name = path.relative_to(self._folder).as_posix()
        if _is_skipped(name) or not path.is_file():
            return
        stat = path.stat()
        now = (stat.st_mtime_ns, stat.st_size)
        if self._copied.get(name) != now:
            content = path.read_bytes()
            if name == STUDY:  # its last line may be incomplete
                content = content[: content.rfind(b"\n") + 1]
            self._shared.write(name, content)
            self._copied[name] = now


def _is_skipped(name: str) -> bool:
    return name.startswith(_SKIPPED_FOLDER) or name.endswith(_SKIPPED_SUFFIXES)
