"""Find or download pretrained weights, read them, and copy them into a network.

Only the driver calls `find_weights`; workers are given weights and download nothing. PyTorch is
imported where it is used, so that a missing file is reported at once.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from spaces.downloads import connection_timeout
from spaces.errors import SearchError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = {"tinynet": Path(__file__).parents[1] / "weights" / "tinynet.pth"}
"""Weights that are part of the package."""

FROM_SCRATCH = ("cnn",)
"""Backbones without pretrained weights."""

SERVER_TIMEOUT_SECONDS = 30.0


class WeightsError(SearchError):
    """Pretrained weights are unavailable, cannot be read, or do not fit the network."""


def pretrained_url(backbone: str) -> str:
    """Return the address of a backbone's ImageNet weights, as torchvision publishes them."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(backbone)["DEFAULT"].url
    return url


def find_weights(
    backbones: Sequence[str],
    weights_dir: Path | None,
    cache: Path,
    *,
    url_of: Callable[[str], str] = pretrained_url,
) -> dict[str, Path]:
    """Find the file of each backbone's pretrained weights; download missing ones.

    Args:
        backbones: Names from `spaces.rules.BACKBONES`.
        weights_dir: A folder of <backbone>.pth files, instead of the cache and downloads.
        cache: The folder of downloads.
        url_of: Returns the address of a backbone's weights. The file name must contain its hash.

    Returns:
        The file of each backbone, without those that always start from scratch (`cnn`).

    Raises:
        WeightsError: some are unavailable; the message names, for each, where it was searched.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    unreachable: dict[str, str] = {}
    for backbone in dict.fromkeys(backbones):
        if backbone in FROM_SCRATCH:
            continue
        try:
            if weights_dir is not None and (weights_dir / f"{backbone}.pth").is_file():
                found[backbone] = weights_dir / f"{backbone}.pth"
            elif backbone in PACKAGED:
                found[backbone] = _in_package(backbone)
            elif weights_dir is not None:
                lack = f"no {backbone}.pth in it" if weights_dir.is_dir() else "no such folder"
                raise WeightsError(
                    f"looked in {weights_dir}: {lack}; put the file there,"
                    f" torchvision's is {url_of(backbone)}"
                )
            else:
                found[backbone] = _in_cache(url_of(backbone), cache, unreachable)
        except WeightsError as error:
            problems.append(f"\n  - {backbone}: {error}")
    if problems:
        raise WeightsError(
            f"Pretrained weights are unavailable:{''.join(problems)}\n"
            "Give a folder of <backbone>.pth files with --weights DIR, or set"
            ' weights="none" in the space to train from scratch.'
        )
    return found


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, plain or wrapped as {"state_dict": …}, without running code of the file.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or a malicious file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} must hold a state dict, but holds a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path} must hold a state dict, but {key!r} in it is a {type(value).__name__}"
            )
    return dict(content)


def copy_weights(
    net: nn.Module, state_dict: Mapping[str, Tensor], name: str, classifier: str | None
) -> None:
    """Copy weights into a network, which may be on the meta device.

    Args:
        net: The network.
        state_dict: Its weights, with or without the classifier's.
        name: Name of the network, for an error.
        classifier: Name of a module of `net` that is not changed.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape.
    """
    import torch

    ignored = () if classifier is None else (f"{classifier}.",)
    wanted = {k: v for k, v in net.state_dict().items() if not k.startswith(ignored)}
    given = {_current_key(k): v for k, v in state_dict.items() if not k.startswith(ignored)}
    for key in wanted:
        if key.endswith(".num_batches_tracked"):  # Files older than PyTorch 0.4.1 lack it.
            given.setdefault(key, torch.zeros((), dtype=torch.long))
    shared = [key for key in wanted if key in given]
    problems = (
        _describe_keys("missing", [key for key in wanted if key not in given]),
        _describe_keys("unexpected", [key for key in given if key not in wanted]),
        _describe_keys(
            "of the wrong shape",
            [
                f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
                for key in shared
                if given[key].shape != wanted[key].shape
            ],
        ),
    )
    if any(problems):
        raise WeightsError(f"the weights do not fit {name}: {'; '.join(filter(None, problems))}")
    copies = {k: given[k].detach().to("cpu", wanted[k].dtype, copy=True) for k in shared}
    net.load_state_dict(copies, strict=False, assign=True)


_OLD_KEYS = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
"""Keys of earlier versions in torchvision's files of DenseNet and ViT, and their replacements."""

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")


def _current_key(key: str) -> str:
    for pattern, replacement in _OLD_KEYS:
        key = pattern.sub(replacement, key)
    return key


def _describe_keys(what: str, keys: Sequence[str], shown: int = 3) -> str:
    """Count the keys and name the first few; empty if there are none."""
    if not keys:
        return ""
    more = ", …" if len(keys) > shown else ""
    return f"{len(keys)} {what} ({', '.join(keys[:shown])}{more})"


def _in_package(backbone: str) -> Path:
    path = PACKAGED[backbone]
    if not path.is_file():
        raise WeightsError(f"looked for {path}: the package lacks it; install it again")
    return path


def _in_cache(url: str, cache: Path, unreachable: dict[str, str]) -> Path:
    """Return a file of the cache whose hash is right, after downloading it if needed.

    Args:
        url: Its address.
        cache: The folder of downloads.
        unreachable: By server, why it did not answer. Such servers are not tried again, because
            each attempt may take the whole timeout.
    """
    path = cache / url.rsplit("/", 1)[-1]
    match = _HASH_IN_NAME.search(path.name)
    if match is None:
        raise WeightsError(f"{url} cannot be checked: its file name holds no hash")
    server = urlsplit(url).netloc
    try:
        if path.is_file():
            if _sha256(path).startswith(match[1]):
                return path
            path.unlink()
        reason = unreachable.get(server) or _download(url, path, match[1])
    except URLError as error:
        reason = unreachable[server] = f"no answer from {server}: {error.reason}"
    except OSError as error:
        reason = str(error)
    if reason:
        raise WeightsError(f"looked in {cache}: no {path.name} in it; tried {url}: {reason}")
    return path


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
