"""An image classifier: a backbone, of which the first stages may be frozen, and a head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainables.models.backbones import Backbone
from trainables.models.network_cut import N_STAGES

Weights = dict[str, Tensor]
"""A state dict, or a part of one."""


def create_head(feature_size: int, n_classes: int, hidden_units: int, dropout: float) -> nn.Module:
    """Build a head: dropout → linear, or with hidden units linear → ReLU → dropout → linear."""
    if hidden_units == 0:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(feature_size, n_classes))
    return nn.Sequential(
        nn.Linear(feature_size, hidden_units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_units, n_classes),
    )


class Classifier(nn.Module):
    """A backbone and a head.

    Attributes:
        backbone: Frozen to some depth.
        head: Turns pooled features into logits.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return logits [N, classes]; see `features_and_logits`."""
        return self.features_and_logits(x, start)[1]

    def features_and_logits(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Run the stages from `start` on, and the head.

        Args:
            x: Output of the first `start` stages; for 0, pixels in [0, 1].
            start: In [0, 5].

        Returns:
            Pooled features [N, feature_size] and logits [N, classes].
        """
        if not torch.is_autocast_enabled(x.device.type):
            x = x.float()  # cached features are bfloat16, and only autocast would convert them
        features = self.backbone(x, start, N_STAGES)
        # The head is small and sensitive to rounding, so it is computed in float32.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.float())
        return features, logits

    def member_weights(self) -> Weights:
        """Copy the weights of the unfrozen stages and the head to the CPU."""
        weights = weights_from_stage(self.backbone, self.backbone.freeze_depth)
        weights |= {f"head.{key}": value for key, value in self.head.state_dict().items()}
        return {key: value.detach().to("cpu", copy=True) for key, value in weights.items()}

    def load_member_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load what `member_weights` returned.

        Raises:
            ValueError: the weights are not those of the unfrozen stages.
            RuntimeError: a tensor has another shape, or the head's are not this head's.
        """
        load_weights_from_stage(self.backbone, self.backbone.freeze_depth, weights)
        head = {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}
        self.head.load_state_dict(head)


def weights_from_stage(backbone: Backbone, start: int) -> Weights:
    """Return the weights of a backbone's stages from `start` on, keyed `stages.<stage>.…`."""
    return {
        f"stages.{key}": value
        for key, value in backbone.stages.state_dict().items()
        if int(key.split(".")[0]) >= start
    }


def load_weights_from_stage(backbone: Backbone, start: int, weights: Mapping[str, Tensor]) -> None:
    """Load what `weights_from_stage` returned; keys without `stages.` are ignored.

    Raises:
        ValueError: a stage's tensor is missing, or one belongs to an earlier stage.
    """
    stages = {k: v for k, v in weights.items() if k.startswith("stages.")}
    expected = weights_from_stage(backbone, start).keys()
    # Without this check a stage would silently keep its random weights.
    for what, keys in (
        ("missing", expected - stages.keys()),
        ("unexpected", stages.keys() - expected),
    ):
        if keys:
            names = ", ".join(sorted(key.removeprefix("stages.") for key in keys)[:3])
            raise ValueError(f"weights of stages are {what}: {names}")
    backbone.stages.load_state_dict(
        {k.removeprefix("stages."): v for k, v in stages.items()}, strict=False
    )
