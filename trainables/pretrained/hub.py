"""Download pretrained weights from the Hugging Face hub into its own cache, with resumption.

`HF_ENDPOINT` (a mirror), `HF_TOKEN`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` apply as everywhere. The
bytes are fetched here rather than by `hf_hub_download`, which deletes what an interrupted download
has brought, and checks no digest; by plain HTTP, which every file of the hub is served by, so that
`hf_xet` is not used. The cache keeps the layout that huggingface_hub documents, so other programs
find the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.errors import SearchError
from trainables.pretrained.resumable_download import (
    DownloadError,
    ShowDownload,
    call_within,
    connection_error,
    download_rest,
    reason_of,
    status_text,
)

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a repository, safetensors first: nothing of it is unpickled."""

ANSWER_SECONDS = 10.0
"""A hub that has not answered by then is away."""

STALL_SECONDS = 10.0
"""A download that is silent for as long is asked for again."""


class HubError(SearchError):
    """The hub does not have the weights, does not hand them out, or they did not arrive whole."""


class HubUnreachableError(HubError):
    """The hub does not answer, so that there is no use in asking it for another file."""


@dataclass(frozen=True)
class Hub:
    """A hub and a cache of its files; None stands for what the environment says.

    Attributes:
        endpoint: The hub's address.
        cache: The folder of the cache.
    """

    endpoint: str | None = None
    cache: Path | None = None

    @property
    def address(self) -> str:
        """The hub's address."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache."""
        from huggingface_hub import constants

        return self.cache or Path(constants.HF_HUB_CACHE)

    def find(self, repo: str, files: Sequence[str] = WEIGHT_FILES) -> Path | None:
        """Return the first of some files of a repository that is in the cache, without asking."""
        from huggingface_hub import try_to_load_from_cache

        for name in files:
            path = try_to_load_from_cache(repo, name, cache_dir=self.cache_folder)
            if isinstance(path, str):
                return Path(path)
        return None

    def fetch(
        self,
        repo: str,
        files: Sequence[str] = WEIGHT_FILES,
        show: ShowDownload = lambda *_: None,
    ) -> Path:
        """Return the first of some files that a repository has, from the cache or downloaded.

        Args:
            repo: Its name, "owner/name".
            files: Names of files, the preferred first.
            show: Is called while the file arrives.

        Raises:
            HubUnreachableError: the hub does not answer within `ANSWER_SECONDS`.
            HubError: it has none of the files, refuses them, or they did not arrive whole. What has
                arrived stays in the cache, and the next call continues there.
        """
        from huggingface_hub import is_offline_mode

        path = self.find(repo, files)
        if path is not None and _is_whole(path):
            return path
        if is_offline_mode():
            state = "is damaged in" if path is not None else "is not in"
            raise HubError(f"HF_HUB_OFFLINE is set, and {repo} {state} {self.cache_folder}")
        if path is not None:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        for name in files:
            metadata = self._ask(repo, name)
            if metadata is not None:
                return self._download(repo, name, metadata, show)
        raise HubError(f"{self.address}/{repo} has no {' and no '.join(files)}")

    def _ask(self, repo: str, name: str) -> HfFileMetadata | None:
        """Ask the hub about a file; None if the repository has no such file."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repo, name, endpoint=self.endpoint)
        try:
            return call_within(
                ANSWER_SECONDS,
                lambda: get_hf_file_metadata(
                    url, timeout=ANSWER_SECONDS, endpoint=self.endpoint, retry_on_errors=False
                ),
            )
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.GatedRepoError:
            raise HubError(
                f"{repo} is gated: accept its licence at {self.address}/{repo}, and log in with"
                " `hf auth login` or HF_TOKEN"
            ) from None
        except errors.RepositoryNotFoundError:
            raise HubError(
                f"{self.address} has no {repo}, or it is private: log in with `hf auth login` or"
                " HF_TOKEN"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            kind = HubUnreachableError if status >= 500 or status == 429 else HubError
            login = ": log in with `hf auth login` or HF_TOKEN" if status in (401, 403) else ""
            raise kind(f"{self.address} answered {status_text(status)}{login}") from None
        except TimeoutError:
            raise HubUnreachableError(
                f"no answer from {self.address} within {ANSWER_SECONDS:.0f} seconds"
            ) from None
        except (OSError, connection_error()) as error:
            raise HubUnreachableError(
                f"no answer from {self.address}: {reason_of(error)}"
            ) from None

    def _download(self, repo: str, name: str, metadata: HfFileMetadata, show: ShowDownload) -> Path:
        """Download a file into the cache, where an earlier download was interrupted if one was."""
        from huggingface_hub import hf_hub_download, hf_hub_url
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined] # lazy

        digest, size, commit = metadata.etag, metadata.size, metadata.commit_hash
        if not (digest and commit and size and _PLAIN.fullmatch(digest + commit)):
            raise HubError(
                f"{self.address} does not answer as a Hugging Face hub: no digest, size or commit"
                f" of {repo}/{name}"
            )
        folder = f"models--{repo.replace('/', '--')}"
        blob = self.cache_folder / folder / "blobs" / digest
        lock = self.cache_folder / ".locks" / folder / f"{digest}.lock"
        try:
            blob.parent.mkdir(parents=True, exist_ok=True)
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if not blob.is_file():
                    part = blob.with_name(f"{digest}.part")
                    url = hf_hub_url(repo, name, revision=commit, endpoint=self.endpoint)
                    download_rest(url, part, size, f"{repo}/{name}", STALL_SECONDS, show)
                    if not _is_whole(part, digest):
                        part.unlink()
                        raise HubError(
                            f"{repo}/{name} arrived damaged (its digest is wrong); try again"
                        )
                    part.replace(blob)
            # The blob is there, so this only writes the links to it and the branch's commit.
            linked = hf_hub_download(
                repo, name, cache_dir=self.cache_folder, endpoint=self.endpoint, token=None
            )
        except DownloadError as error:
            raise HubError(str(error)) from None
        except (OSError, connection_error()) as error:
            raise HubError(f"{repo}/{name} cannot be stored in {blob.parent}: {error}") from None
        return Path(linked)


_PLAIN = re.compile(r"[0-9A-Za-z_-]+")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_whole(path: Path, digest: str | None = None) -> bool:
    """Check a file against its SHA-256, by which the cache names large files; else trust it."""
    digest = digest or path.resolve().name
    if not _SHA256.fullmatch(digest):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest
