"""The portfolio: backbones of different kind and cost that a run tries where none is named.

`--backbones auto` searches it, and so does a space whose backbones are exactly these. The
linear-probe stage ranks them; those that are behind leave the search (docs/backbones.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spaces.rules import BACKBONES
from spaces.timm_names import PREFIX, timm_names

AUTO = "auto"
"""What stands for the portfolio in place of names."""

PORTFOLIO: dict[str, str] = {
    "mobilenet_v2": "fast on every CPU; what most tutorials begin with",
    "timm/tf_efficientnet_lite0": "of similar cost, and more accurate on ImageNet",
    "timm/tf_efficientnet_lite2": "the same family one step larger",
    "squeezenet1_0": "the fewest weights: the smallest model, and the least to fine-tune",
    "timm/mobilenetv4_conv_medium.e500_r224_in1k": "the most recent family for phones and CPUs",
    "timm/convnext_nano.in12k_ft_in1k": "has seen 12,000 classes, so it knows finer differences",
    "resnet50": "the common reference, with the weights of today's training",
    "timm/tiny_vit_21m_224.dist_in22k_ft_in1k": "a hybrid, taught by a model of images and text",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": "a plain transformer, of 21,000 classes",
    "timm/vit_small_patch14_dinov2.lvd142m": "has seen no labels: strong far from ImageNet",
}
"""By name, why it is in the portfolio; the cheapest first. The licences allow all uses."""

_SUFFIXES = (".safetensors", ".pth", ".bin")


def portfolio_backbones(weights_dir: Path | None) -> tuple[str, ...]:
    """Return the portfolio, and all other backbones that a folder of weights is of.

    Args:
        weights_dir: A folder of files that are called as backbones, or as networks of timm; None
            is no folder.
    """
    stems = [
        path.stem
        for path in sorted(weights_dir.iterdir() if weights_dir and weights_dir.is_dir() else ())
        if path.suffix in _SUFFIXES
    ]
    # A file without a tag is of the network's own weights, whichever tag the portfolio has.
    networks = {name.removeprefix(PREFIX).partition(".")[0] for name in PORTFOLIO}
    others = [
        stem if stem in BACKBONES else f"{PREFIX}{stem}"
        for stem in stems
        if stem not in networks and (stem in BACKBONES or stem in timm_names())
    ]
    return tuple(dict.fromkeys([*PORTFOLIO, *others]))


def is_portfolio(backbones: Sequence[str]) -> bool:
    """Return whether a space searches the portfolio, in whatever order."""
    return set(backbones) == set(PORTFOLIO)
