"""A copy of the run's folder in storage, kept up to date: what is lost with the head is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from search.runs.run_folder import CHECKPOINT, STUDY
from search.runs.storage import LocalFiles, SharedFiles

EVERY_SECONDS = 60.0
"""How old the copy may be."""

_LEFT_OUT = ("cache/", ".partial", CHECKPOINT)
"""What can be made again, what is not whole, and what trials keep in storage themselves."""


@contextmanager
def synced(
    folder: Path,
    shared: SharedFiles | None,
    warn: Callable[[str], None],
    every_seconds: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Copy what is new in a run's folder to storage, every so often and in the end.

    Args:
        folder: The run's.
        shared: Where to; None does nothing.
        warn: Is told when storage does not answer; the run goes on.
        every_seconds: How often.
    """
    if shared is None:
        yield
        return
    mirror, ended = _Sync(folder, shared, warn), Event()

    def keep_up() -> None:
        while not ended.wait(every_seconds):
            mirror.update()

    thread = Thread(target=keep_up, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        mirror.update()


def fetch(shared: SharedFiles, folder: Path) -> None:
    """Copy a run from storage into a folder."""
    home = LocalFiles(folder)
    for name in shared.names():
        content = None if _is_left_out(name) else shared.read(name)
        if content is not None:
            home.write(name, content)


class _Sync:
    def __init__(self, folder: Path, shared: SharedFiles, warn: Callable[[str], None]) -> None:
        self._folder, self._shared, self._warn = folder, shared, warn
        self._copied: dict[str, tuple[int, int]] = {}
        self._is_behind = False

    def update(self) -> None:
        """Copy the files that changed since the last time."""
        try:
            for path in sorted(self._folder.rglob("*")):
                self._copy(path)
            self._is_behind = False
        except OSError as error:  # pyarrow's errors as well
            if not self._is_behind:
                self._warn(f"{self._shared.url} does not take the run's files: {error}")
            self._is_behind = True

    def _copy(self, path: Path) -> None:
        name = path.relative_to(self._folder).as_posix()
        if _is_left_out(name) or not path.is_file():
            return
        stat = path.stat()
        now = (stat.st_mtime_ns, stat.st_size)
        if self._copied.get(name) != now:
            content = path.read_bytes()
            if name == STUDY:  # a line may be being written
                content = content[: content.rfind(b"\n") + 1]
            self._shared.write(name, content)
            self._copied[name] = now


def _is_left_out(name: str) -> bool:
    return name.startswith(_LEFT_OUT[0]) or name.endswith(_LEFT_OUT[1:])
