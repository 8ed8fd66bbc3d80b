"""Find the files of pretrained weights: in a folder, in the package, in caches, or by download.

Only the driver calls this; workers are given weights and download nothing. PyTorch, torchvision and
timm are imported where they are used, so that a missing file is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from spaces.rules import BACKBONES
from spaces.timm_names import PREFIX, timm_names
from trainables.pretrained.hub import (
    WEIGHT_FILES,
    Hub,
    HubError,
    HubUnreachableError,
)
from trainables.pretrained.resumable_download import ShowDownload
from trainables.pretrained.timm_weights import SUFFIXES, timm_source
from trainables.pretrained.url_files import fetch_url, file_name, find_downloaded
from trainables.pretrained.weights import PACKAGED, WeightsError

FROM_SCRATCH = ("cnn",)
"""Backbones without pretrained weights."""

Reason = Callable[[], str]
"""Returns why a backbone has no weights; may import timm or torchvision, which publish them."""


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
    hub: Hub = Hub(),  # noqa: B008 (immutable)
    show: ShowDownload = lambda *_: None,
) -> dict[str, Path]:
    """Find the file of each backbone's pretrained weights; download missing ones.

    Args:
        backbones: Names from `spaces.rules.BACKBONES`, and "timm/…".
        weights_dir: A folder of files, instead of caches and downloads.
        cache: The folder of downloads that are not from the hub.
        url_of: Returns the address of a backbone's weights. The file name must contain its hash.
        hub: The Hugging Face hub, where timm's weights are, and its cache.
        show: Is called while a file arrives from the hub.

    Returns:
        The file of each backbone, without those that always start from scratch (`cnn`).

    Raises:
        WeightsError: some are unavailable; the message names, for each, where it was searched.
    """
    found, problems = find_available_weights(
        backbones, weights_dir, cache, url_of=url_of, hub=hub, show=show
    )
    if problems:
        raise unavailable_weights(problems, weights_dir)
    return found


def find_available_weights(
    backbones: Sequence[str],
    weights_dir: Path | None,
    cache: Path,
    *,
    url_of: Callable[[str], str] = pretrained_url,
    hub: Hub = Hub(),  # noqa: B008 (immutable)
    show: ShowDownload = lambda *_: None,
) -> tuple[dict[str, Path], dict[str, Reason]]:
    """Find or download what weights there are: as `find_weights`, but without an error.

    Returns:
        The file of each backbone that has one; and why there is none, by each other backbone.
    """
    found: dict[str, Path] = {}
    problems: dict[str, Reason] = {}
    unreachable: dict[str, str] = {}
    for backbone in dict.fromkeys(backbones):
        if backbone in FROM_SCRATCH or ":" in backbone:
            continue
        try:
            given = None if weights_dir is None else _find_in_folder(backbone, weights_dir)
            if given is not None:
                found[backbone] = given
            elif backbone in PACKAGED:
                found[backbone] = _in_package(backbone)
            elif weights_dir is not None:
                problems[backbone] = partial(_describe_lack, backbone, weights_dir, url_of)
            elif backbone.startswith(PREFIX):
                found[backbone] = _from_hub(backbone, cache, hub, show, unreachable)
            else:
                found[backbone] = fetch_url(url_of(backbone), cache, unreachable)
        except WeightsError as error:
            problems[backbone] = partial(str, str(error))
    return found, problems


def unavailable_weights(problems: Mapping[str, Reason], weights_dir: Path | None) -> WeightsError:
    """Return the error that weights are unavailable, with the ways out.

    Args:
        problems: By backbone, why there are none.
        weights_dir: The folder that was searched, if one was given.
    """
    listed = "".join(f"\n  - {name}: {problem()}" for name, problem in problems.items())
    by_hub = weights_dir is None and any(name.startswith(PREFIX) for name in problems)
    return WeightsError(
        f"Pretrained weights are unavailable:{listed}\n"
        f"Give a folder of {'their' if by_hub else '<backbone>.pth'} files with --weights DIR,"
        f"{_HUB_WAYS_OUT if by_hub else ''} or set"
        ' weights="none" in the space to train from scratch.'
    )


def find_local_weights(
    backbone: str,
    weights_dir: Path | None,
    cache: Path,
    hub: Hub = Hub(),  # noqa: B008 (immutable)
) -> Path | None:
    """Return the file of a backbone's weights if it is on this machine; nothing is downloaded.

    Args:
        backbone: Its name.
        weights_dir: A folder of files, instead of caches.
        cache: The folder of downloads that are not from the hub.
        hub: The Hugging Face hub's cache.
    """
    given = None if weights_dir is None else _find_in_folder(backbone, weights_dir)
    if given is not None:
        return given
    if backbone in PACKAGED:
        return PACKAGED[backbone] if PACKAGED[backbone].is_file() else None
    if weights_dir is not None or backbone in FROM_SCRATCH:
        return None
    if not backbone.startswith(PREFIX):
        return find_downloaded(pretrained_url(backbone), cache)
    try:
        source = timm_source(backbone)
    except WeightsError:
        return None
    cached = hub.find(source.repo, source.files) if source.repo else None
    return cached or (find_downloaded(source.url, cache) if source.url else None)


def describe_source(backbone: str, file: Path | None, weights_dir: Path | None) -> str:
    """Return where the weights of a backbone are from, for people.

    Args:
        backbone: Its name.
        file: What `find_weights` returned; None for random weights.
        weights_dir: The folder that it searched, if any.
    """
    if ":" in backbone:
        return backbone
    if file is None:
        return "random"
    if file == PACKAGED.get(backbone):
        return "this package"
    if weights_dir is not None:
        return f"{file.name} in --weights"
    if not backbone.startswith(PREFIX):
        return pretrained_url(backbone)
    source = timm_source(backbone)
    return f"https://huggingface.co/{source.repo}" if source.repo else source.url


def has_weights(backbone: str) -> bool:
    """Return whether a backbone has published weights."""
    if backbone in FROM_SCRATCH or ":" in backbone:
        return False
    if not backbone.startswith(PREFIX):
        return True
    try:
        source = timm_source(backbone)
    except WeightsError:
        return False
    return bool(source.repo or source.url)


def _find_in_folder(backbone: str, folder: Path) -> Path | None:
    return next(filter(Path.is_file, _candidates(backbone, folder)), None)


def _candidates(backbone: str, folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that may hold a backbone's weights, the most likely first.

    They are called as the backbone, or as the file that timm or torchvision publishes.
    """
    name = backbone.removeprefix(PREFIX)
    for suffix in SUFFIXES:
        yield folder / f"{name}{suffix}"
    for file in WEIGHT_FILES:
        yield folder / name / file
    if not folder.is_dir() or not _may_be_renamed(name, folder):
        return
    if not has_weights(backbone) or backbone in PACKAGED:
        return
    if not backbone.startswith(PREFIX):
        from torchvision.models import get_model_weights

        yield from (folder / file_name(one.url) for one in get_model_weights(backbone))
        return
    try:
        source = timm_source(backbone)
    except WeightsError:
        return
    if source.url:
        yield folder / file_name(source.url)
    # A file without a tag is of the network's default weights.
    network, _, tag = name.partition(".")
    default = timm_source(PREFIX + network).tag
    if not tag and default:
        yield from _candidates(f"{backbone}.{default}", folder)
    elif tag == default:
        yield from (folder / f"{network}{suffix}" for suffix in SUFFIXES)


def _may_be_renamed(name: str, folder: Path) -> bool:
    """Return whether a folder may hold a backbone's weights under another name than its own.

    Where all files are called as other backbones, timm or torchvision, which take seconds to
    import, need not be asked for the names of theirs.
    """
    network = name.partition(".")[0]
    known = timm_names().union(BACKBONES)
    stems = [path.stem for path in folder.iterdir()]
    return any(stem not in known or stem.partition(".")[0] == network for stem in stems)


def _describe_lack(backbone: str, folder: Path, url_of: Callable[[str], str]) -> str:
    """Say which file a folder lacks, and where it is published."""
    name = backbone.removeprefix(PREFIX)
    if backbone.startswith(PREFIX):
        names = f"{name}.safetensors or {name}.pth"
        try:
            source = timm_source(backbone)
            page = f"https://huggingface.co/{source.repo}" if source.repo else source.url
            published = f"timm's is at {page}"
        except WeightsError as error:
            published = str(error)
    else:
        names, published = f"{name}.pth", f"torchvision's is {url_of(backbone)}"
    lack = f"no {names} in it" if folder.is_dir() else "no such folder"
    return f"looked in {folder}: {lack}; put the file there, {published}"


def _in_package(backbone: str) -> Path:
    path = PACKAGED[backbone]
    if not path.is_file():
        raise WeightsError(f"looked for {path}: the package lacks it; install it again")
    return path


def _from_hub(
    backbone: str, cache: Path, hub: Hub, show: ShowDownload, unreachable: dict[str, str]
) -> Path:
    """Return timm's weights from the hub, or from where else they are published."""
    source = timm_source(backbone)
    if not source.repo:
        if not source.url:
            raise WeightsError("its weights are published in another format than PyTorch's")
        return fetch_url(source.url, cache, unreachable)
    try:
        if hub.address in unreachable:
            raise HubError(unreachable[hub.address])
        return hub.fetch(source.repo, source.files, show)
    except HubUnreachableError as error:
        unreachable[hub.address] = str(error)
        reason = str(error)
    except HubError as error:
        reason = str(error)
    # An earlier version of timm may have downloaded them by their address.
    if source.url and (found := find_downloaded(source.url, cache)) is not None:
        return found
    raise WeightsError(f"looked in {hub.cache_folder}: no {source.repo} in it; {reason}")


_HUB_WAYS_OUT = (
    " name a mirror of the hub by HF_ENDPOINT, bring its cache from another machine and set"
    " HF_HUB_OFFLINE=1,"
)
