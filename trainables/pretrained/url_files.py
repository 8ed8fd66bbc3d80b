"""Download files whose names hold their hash, as torchvision and PyTorch publish weights."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from spaces.downloads import connection_timeout
from trainables.pretrained.resumable_download import call_within
from trainables.pretrained.weights import WeightsError

SERVER_TIMEOUT_SECONDS = 10.0

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")


def fetch_url(url: str, cache: Path, unreachable: dict[str, str]) -> Path:
    """Return a file of the cache whose hash is right, after downloading it if needed.

    Args:
        url: Its address.
        cache: The folder of downloads.
        unreachable: By server, why it did not answer. Such servers are not tried again, because
            each attempt may take the whole timeout.
    """
    path = cache / file_name(url)
    match = _HASH_IN_NAME.search(path.name)
    if match is None:
        raise WeightsError(f"{url} cannot be checked: its file name holds no hash")
    server = urlsplit(url).netloc
    try:
        if (found := find_downloaded(url, cache)) is not None:
            return found
        path.unlink(missing_ok=True)
        if server not in unreachable:
            _check_answer(url)
        reason = unreachable.get(server) or _download(url, path, match[1])
    except URLError as error:
        reason = unreachable[server] = f"no answer from {server}: {error.reason}"
    except OSError as error:
        reason = str(error)
    if reason:
        raise WeightsError(f"looked in {cache}: no {path.name} in it; tried {url}: {reason}")
    return path


def find_downloaded(url: str, cache: Path) -> Path | None:
    """Return a file of our cache, or of PyTorch's, whose hash is right."""
    from torch.hub import get_dir

    name = file_name(url)
    match = _HASH_IN_NAME.search(name)
    for path in (cache / name, Path(get_dir()) / "checkpoints" / name):
        if match and path.is_file() and _sha256(path).startswith(match[1]):
            return path
    return None


def file_name(url: str) -> str:
    """Return the last part of an address's path."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


def _check_answer(url: str) -> None:
    """Check that a server answers at all, in the time for one attempt.

    A download would try each of its addresses for that long, and wait for the name server before.

    Raises:
        URLError: it does not.
    """

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=SERVER_TIMEOUT_SECONDS).close()  # noqa: S310
        except HTTPError as error:  # what is wrong the download will say
            error.close()
        except http.client.HTTPException:
            pass

    try:
        call_within(SERVER_TIMEOUT_SECONDS, ask)
    except TimeoutError:
        raise URLError(f"it timed out after {SERVER_TIMEOUT_SECONDS:g} seconds") from None


def _download(url: str, path: Path, hash_prefix: str) -> str:
    """Download a file atomically; return why it failed, or an empty string.

    torch.hub writes to a temporary file and renames it once its hash is right.

    Raises:
        OSError: the server cannot be reached, or the file cannot be written.
    """
    from torch.hub import download_url_to_file

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with connection_timeout(SERVER_TIMEOUT_SECONDS):
            download_url_to_file(url, str(path), hash_prefix, sys.stderr.isatty())
    except HTTPError as error:
        error.close()
        return f"the server answered {error.code} {error.reason}"
    except http.client.HTTPException as error:
        return f"the download broke off ({type(error).__name__}); try again"
    except RuntimeError:  # the hash is wrong
        return "the file arrived damaged or truncated (its hash is wrong); try again"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
