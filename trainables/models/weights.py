"""Pretrained weights: found on disk or downloaded, read, and fitted into a network.

Only the driver calls `find_weights`: a worker is given weights and downloads nothing. PyTorch is
imported where it is needed, so that a missing file is told in a moment.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = {"tinynet": Path(__file__).parents[1] / "weights" / "tinynet.pth"}
"""Weights that ship in the package."""

FROM_SCRATCH = ("cnn",)
"""Backbones that nobody has pretrained."""

SERVER_TIMEOUT_SECONDS = 30.0


class WeightsError(ValueError):
    """Pretrained weights cannot be had, cannot be read, or do not fit."""


def pretrained_url(backbone: str) -> str:
    """Return where torchvision publishes a backbone's ImageNet weights."""
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
    """Find each backbone's pretrained state dict; without a `weights_dir`, download what lacks.

    Args:
        backbones: Names from `spaces.base.BACKBONES`.
        weights_dir: A folder of <backbone>.pth files, used instead of the cache and of a download.
        cache: The folder that keeps downloads; made when the first one comes.
        url_of: Where a backbone is downloaded from. Its file name must hold its hash.

    Returns:
        The file of each backbone, but for those that always start from scratch (`cnn`).

    Raises:
        WeightsError: some cannot be had; the message says for each of them where it looked.
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
            f"Pretrained weights cannot be had:{''.join(problems)}\n"
            "Give a folder that holds them as <backbone>.pth with --weights DIR, or set"
            ' weights="none" in the space to train from scratch.'
        )
    return found


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, plain or wrapped as {"state_dict": …}, onto the CPU.

    No code in the file is run.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or a hostile file
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


def fit_weights(
    net: nn.Module, state_dict: Mapping[str, Tensor], name: str, classifier: str | None
) -> None:
    """Give a network copies of the weights, in place of what it has or on the meta device lacks.

    Args:
        net: The network, whose `classifier` is left as it is.
        state_dict: Its weights; the classifier's may be among them or not.
        name: What to call the network in an error.
        classifier: Name of a module in `net`, whose weights are ignored.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; the message names them.
    """
    import torch

    ignored = () if classifier is None else (f"{classifier}.",)
    wanted = {k: v for k, v in net.state_dict().items() if not k.startswith(ignored)}
    given = {_todays_key(k): v for k, v in state_dict.items() if not k.startswith(ignored)}
    for key in wanted:
        if key.endswith(".num_batches_tracked"):  # Files older than PyTorch 0.4.1 lack it.
            given.setdefault(key, torch.zeros((), dtype=torch.long))
    shared = [key for key in wanted if key in given]
    problems = (
        _listing("missing", [key for key in wanted if key not in given]),
        _listing("unexpected", [key for key in given if key not in wanted]),
        _listing(
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
"""Names that torchvision's published files of DenseNet and ViT keep from earlier versions."""

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")


def _todays_key(key: str) -> str:
    for pattern, replacement in _OLD_KEYS:
        key = pattern.sub(replacement, key)
    return key


def _listing(what: str, keys: Sequence[str], shown: int = 3) -> str:
    """Count the keys and name the first few; nothing when there is none."""
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
    """Return a whole, checked file in the cache, downloading it when it is not there.

    Args:
        url: Where it is published.
        cache: A folder.
        unreachable: Servers that gave no answer, with the reason. They are not asked again:
            an air-gapped machine may take the whole timeout to find that out.
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
    """Download a file; return why its server's answer is no good, or nothing when it is.

    It gets its name only when it is whole: torch.hub writes another file and renames it.

    Raises:
        OSError: the server cannot be reached, or the file cannot be written.
    """
    from torch.hub import download_url_to_file

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _timeout(SERVER_TIMEOUT_SECONDS):
            download_url_to_file(url, str(path), hash_prefix, sys.stderr.isatty())
    except HTTPError as error:
        error.close()
        return f"the server says {error.code} {error.reason}"
    except http.client.HTTPException as error:
        return f"the download broke off ({type(error).__name__}); try again"
    except RuntimeError:  # It hashes what arrived.
        return "what arrived is damaged or cut short (its hash is wrong); try again"
    return ""


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Let no connection hang: torch.hub passes no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
