"""Count a network's parameters and operations without computing anything, on the meta device."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spaces.timm_names import PREFIX, load_timm
from trainables.models.backbones import create_backbone


@dataclass(frozen=True)
class Cost:
    """What a backbone costs, without its classifier.

    Attributes:
        parameters: Their number.
        gflops: 10⁹ multiply-adds of one image, which is what torchvision's and timm's tables, and
            most papers, call FLOPs.
        image_size: Side in pixels of the image.
    """

    parameters: int
    gflops: float
    image_size: int


@functools.cache
def count_cost(backbone: str, image_size: int) -> Cost | None:
    """Count the cost of a backbone; None where it cannot take images of this size.

    Args:
        backbone: Its name; tags of timm's weights make no difference.
        image_size: Side in pixels of the images.
    """
    try:
        network = _on_meta_device(backbone, image_size)
        pixels = torch.empty(1, 3, image_size, image_size, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(pixels)
    except (RuntimeError, ValueError, AssertionError):
        return None
    parameters = sum(one.numel() for one in network.parameters())
    return Cost(parameters, counter.get_total_flops() / 2e9, image_size)


def count_values(backbone: str, image_size: int) -> int | None:
    """Count the parameters and buffers of a backbone; None where it cannot be built."""
    try:
        network = _on_meta_device(backbone, image_size)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):
        return None
    return sum(one.numel() for one in itertools.chain(network.parameters(), network.buffers()))


def _on_meta_device(backbone: str, image_size: int) -> nn.Module:
    """Build a network whose tensors have shapes and no data."""
    if backbone.startswith(PREFIX):
        # timm's own network, not our five stages: finding them takes longer than building it.
        timm = load_timm()
        name = backbone.removeprefix(PREFIX)
        published = timm.get_pretrained_cfg(name)
        size: dict[str, Any] = (
            {"img_size": image_size} if published and published.fixed_input_size else {}
        )
        with torch.device("meta"):
            network: nn.Module = timm.create_model(name, num_classes=0, **size)
        return network.eval()
    # RegNet's constructor computes its widths with tensors, which is not possible there.
    with torch.device("cpu" if backbone.startswith("regnet") else "meta"):
        return create_backbone(backbone).to("meta").eval()
