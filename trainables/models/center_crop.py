"""Classify the enlarged centre of each image with linear heads on pretrained features.

The object usually fills the centre of an image; enlarged, it shows the network details that are too
small in the full image. The heads' logits are added to those of the ensemble's members, which see
the full image.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.models.backbones import Backbone

CENTER_FRACTION = 0.7
"""Fraction of an image's side that the centre crop keeps."""


class CenterCropBranch(nn.Module):
    """A pretrained backbone on the centre crop, with a linear head per member of an ensemble."""

    def __init__(self, backbone: Backbone, heads: Mapping[str, Tensor]) -> None:
        """Attach the heads to the backbone.

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
        """Return the logits to add to each member's, [members, N, classes].

        Args:
            pixels: Pixels of the full images in [0, 1], [N, 3, H, W].
        """
        features = self.backbone(enlarge_center(pixels))
        with torch.autocast(features.device.type, enabled=False):
            return torch.stack([head(features.float()) for head in self.heads])

    def head_weights(self) -> dict[str, Tensor]:
        """Return the heads' weights, in the form that the constructor takes, on the CPU."""
        states = [head.state_dict() for head in self.heads]
        return {key: torch.stack([one[key] for one in states]).cpu() for key in states[0]}


def enlarge_center(pixels: Tensor) -> Tensor:
    """Crop the centre of images [N, 3, H, W] and resize it (bilinear) to H × W."""
    height, width = pixels.shape[-2:]
    top, left = (round(side * (1 - CENTER_FRACTION) / 2) for side in (height, width))
    center = pixels[..., top : height - top, left : width - left]
    return functional.interpolate(center, (height, width), mode="bilinear", align_corners=False)
