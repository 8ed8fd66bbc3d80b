"""A second look at each image's middle, enlarged, by linear heads on pretrained features.

What an image is of mostly fills its middle; enlarged, a network finds there what is too small for
it in the whole. The heads' logits are added to those of the members, which see the whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.models.backbones import Backbone

ZOOM = 0.7
"""Share of an image's side that is looked at."""


class CenterCropBranch(nn.Module):
    """One pretrained backbone, and a linear head for each member of an ensemble."""

    def __init__(self, backbone: Backbone, heads: Mapping[str, Tensor]) -> None:
        """Put heads on a backbone.

        Args:
            backbone: Pretrained, and never trained.
            heads: `weight` [members, classes, feature_size] and `bias` [members, classes].
        """
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList()
        for weight, bias in zip(heads["weight"], heads["bias"], strict=True):
            head = nn.Linear(*weight.T.shape)
            head.load_state_dict({"weight": weight, "bias": bias})
            self.heads.append(head)
        self.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what is added to each member's logits, [members, N, classes].

        Args:
            pixels: Normalised, [N, 3, H, W]: what the members see.
        """
        features = self.backbone(enlarge_center(pixels))
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack([head(features.float()) for head in self.heads])

    def head_weights(self) -> dict[str, Tensor]:
        """Return the heads as they came, on the CPU."""
        states = [head.state_dict() for head in self.heads]
        return {key: torch.stack([one[key] for one in states]).cpu() for key in states[0]}


def enlarge_center(pixels: Tensor) -> Tensor:
    """Cut the middle out of images [N, 3, H, W] and enlarge it (bilinear) to what they were."""
    height, width = pixels.shape[-2:]
    top, left = (round(side * (1 - ZOOM) / 2) for side in (height, width))
    middle = pixels[..., top : height - top, left : width - left]
    return functional.interpolate(middle, (height, width), mode="bilinear", align_corners=False)
