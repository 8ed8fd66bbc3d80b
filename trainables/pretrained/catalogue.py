"""List backbones with what is known of them: cost, accuracy, licence, weights on this machine."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic

from spaces.portfolio import PORTFOLIO
from spaces.rules import BACKBONES
from spaces.timm_names import PREFIX, load_timm
from trainables.pretrained.hub import Hub
from trainables.pretrained.imagenet_accuracy import published_accuracy
from trainables.pretrained.licences import Licence, weights_licence
from trainables.pretrained.weight_files import find_local_weights, has_weights

COUNTING_SECONDS = 30.0
"""Networks whose cost is not counted by then are listed without it."""


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone.

    Attributes:
        name: What `--backbones` takes.
        parameters: Their number, without the classifier; None where it was not counted.
        gflops: 10⁹ multiply-adds of one image; None where the network does not take the size.
        image_size: Side in pixels of that image.
        latency_ms: Milliseconds of one image on this machine; None where it was not measured.
        imagenet_top1: Published accuracy in [0, 1]; None where it is not known.
        licence: Of its published weights.
        weights: Their file on this machine; None where they are not.
        is_published: Whether there are weights to download.
        in_portfolio: Whether `--backbones auto` tries it.
    """

    name: str
    parameters: int | None
    gflops: float | None
    image_size: int
    latency_ms: float | None
    imagenet_top1: float | None
    licence: Licence
    weights: Path | None
    is_published: bool
    in_portfolio: bool


def find_names(pattern: str | None) -> list[str]:
    """Return the names of backbones that a pattern matches.

    Args:
        pattern: A name, or one with `*`, `?` and `[…]`; those of timm begin with `timm/` and match
            with their tags. None lists ours and the portfolio.
    """
    if pattern is None:
        return list(dict.fromkeys((*BACKBONES, *PORTFOLIO)))
    found = [name for name in BACKBONES if fnmatchcase(name, pattern)]
    if not pattern.startswith((PREFIX, *"*?[")):
        return found
    timm = load_timm()
    if timm.is_model(pattern.removeprefix(PREFIX)) and "." not in pattern:
        return [pattern]
    tagged = [PREFIX + name for name in timm.list_models(pretrained=True)]
    untagged = [PREFIX + name for name in timm.list_models()]
    matching = [name for name in tagged if fnmatchcase(name, pattern)]
    return found + (matching or [name for name in untagged if fnmatchcase(name, pattern)])


def similar_names(pattern: str) -> list[str]:
    """Return the three names that are most similar to a pattern that matches none."""
    timm = load_timm()
    bare = pattern.strip("*?")
    has_tag = "." in bare
    known = [*BACKBONES, *(PREFIX + name for name in timm.list_models(pretrained=has_tag))]
    alone = bare if bare.startswith(PREFIX) or bare in BACKBONES else PREFIX + bare
    return difflib.get_close_matches(bare, known, 3, 0.6) or difflib.get_close_matches(
        alone, known, 3, 0.4
    )


def describe_backbones(
    names: Sequence[str],
    image_size: int,
    weights_dir: Path | None,
    cache: Path,
    measure: bool = False,
    hub: Hub = Hub(),  # noqa: B008 (immutable)
) -> Iterator[BackboneInfo]:
    """Yield what is known of each backbone; nothing is downloaded.

    Args:
        names: Their names.
        image_size: Side in pixels of the images that cost and latency are of.
        weights_dir: A folder of weights, instead of the caches.
        cache: The folder of downloads.
        measure: Whether to measure the latency, with random weights.
        hub: The Hugging Face hub's cache.
    """
    from trainables.models.cost import count_cost

    until = monotonic() + COUNTING_SECONDS
    for name in names:
        network = name.partition(".")[0]  # one of timm's has the same cost with every tag
        cost = count_cost(network, image_size) if monotonic() < until else None
        yield BackboneInfo(
            name=name,
            parameters=cost.parameters if cost else None,
            gflops=cost.gflops if cost else None,
            image_size=image_size,
            latency_ms=_latency(name, image_size) if measure and cost else None,
            imagenet_top1=published_accuracy(name),
            licence=weights_licence(name),
            weights=find_local_weights(name, weights_dir, cache, hub),
            is_published=has_weights(name),
            in_portfolio=name in PORTFOLIO,
        )


def _latency(name: str, image_size: int) -> float | None:
    import torch

    from trainables.models.backbones import create_backbone
    from trainables.models.latency import measure_latency

    try:
        backbone = create_backbone(name)
    except ValueError:
        return None
    return measure_latency(backbone, image_size, torch.device("cpu"))
