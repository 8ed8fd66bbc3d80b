"""Download a file by HTTP, beginning where an earlier download was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from http import HTTPStatus
from os import SEEK_END
from pathlib import Path
from threading import Thread
from typing import BinaryIO, TypeVar

from spaces.errors import SearchError

T = TypeVar("T")

ShowDownload = Callable[[str, int, int], None]
"""Called with the file's name, the bytes that are there, and those that there will be."""


class DownloadError(SearchError):
    """A file did not arrive whole; what has arrived is kept."""


def download_rest(
    url: str, part: Path, size: int, label: str, timeout: float, show: ShowDownload
) -> None:
    """Append to a file until it has `size` bytes.

    An interrupted answer is asked for again as long as each brings something.

    Args:
        url: The address.
        part: The file, which need not exist.
        size: Bytes that it will have.
        label: Its name for people.
        timeout: Seconds of silence after which an answer has been interrupted.
        show: Is called while it arrives.

    Raises:
        DownloadError: an answer brought nothing, or the disk has too little space.
        OSError: the folder cannot be written to.
    """
    part.touch()
    with part.open("r+b") as file:
        if file.seek(0, SEEK_END) > size:
            _empty(file)
        while (done := file.tell()) < size:
            free = shutil.disk_usage(part.parent).free
            if free < size - done:
                raise DownloadError(
                    f"{label} needs {_megabytes(size - done)}, but {part.parent} has"
                    f" {_megabytes(free)} free: make room, or set HF_HUB_CACHE to another"
                    " folder"
                )
            show(label, done, size)
            broke = _append(url, file, size, timeout, lambda n_done: show(label, n_done, size))
            if file.tell() <= done:
                raise DownloadError(
                    f"the download of {label} broke off after {_megabytes(done)} of"
                    f" {_megabytes(size)} ({broke}); the same command continues it"
                )


def _append(
    url: str, file: BinaryIO, size: int, timeout: float, show: Callable[[int], None]
) -> str:
    """Append what a server sends from the file's end on; return why it ended, if early."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # lazy

    start = file.tell()
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with get_session().stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            if response.status_code not in (200, 206):
                return f"the server answered {status_text(response.status_code)}"
            if response.status_code == 200:  # it knows no ranges: from the beginning
                _empty(file)
            for chunk in response.iter_bytes():
                file.write(chunk[: size - file.tell()])
                show(file.tell())
                if file.tell() >= size:
                    break
    except connection_error() as error:
        return reason_of(error)
    finally:
        file.flush()
    return "the server closed the connection"


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def connection_error() -> type[Exception]:
    """Return the common base of all errors of a connection."""
    import httpx2

    return httpx2.HTTPError


def call_within(seconds: float, call: Callable[[], T]) -> T:
    """Call a function in a thread: looking up a server's address heeds no timeout.

    Raises:
        TimeoutError: it has not returned in time.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            failures.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError
    return results[0]


def status_text(code: int) -> str:
    """Return a status with its meaning: "404 Not Found"."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def reason_of(error: Exception) -> str:
    """Return the first line of an error, or its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
