"""Download sets of images, each at most once."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_SECONDS = 60.0
"""A connection that is silent for longer has failed."""


def cache_folder() -> Path:
    """Return the folder of downloads: $CLASSIFIER_SEARCH_CACHE, or one in the home folder.

    A user without a home, as in a container, has one among the temporary files.
    """
    if named := os.environ.get("CLASSIFIER_SEARCH_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "classifier-search"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"classifier-search-{os.getuid()}"


def download_once(target: Path, fetch: Callable[[Path], None]) -> None:
    """Download a folder unless it exists.

    It is fetched into a temporary folder beside `target`, where its hash is checked and it is
    unpacked, and renamed at the end. A failed download leaves nothing, and can be repeated.

    Args:
        target: The folder.
        fetch: Downloads a folder of `target`'s name into the folder that it is given.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as partial,
        connection_timeout(TIMEOUT_SECONDS),
    ):
        fetch(Path(partial))
        try:
            (Path(partial) / target.name).rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another run has downloaded the same meanwhile
                raise


@contextmanager
def connection_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of connections whose libraries set none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
