"""The ensemble as others run it: one graph from uint8 pixels to probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.images import MEAN, STD
from trainables.model import Ensemble, mean_probabilities


class Deployed(nn.Module):
    """Normalisation, frozen stages once, every member's own, softmax at the temperature, mean.

    All in float32, whatever the processor: what is exported gives the same everywhere.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble.to(memory_format=torch.contiguous_format)
        self.temperature = float(ensemble.card.temperature)
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1))
        self.register_buffer("shift", (mean / std).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Classify pictures.

        Args:
            pictures: uint8 [N, H, W, 3], RGB, H = W = the card's `image_size`.

        Returns:
            Probabilities: float32 [N, classes].
        """
        pixels = pictures.permute(0, 3, 1, 2).to(torch.float32)
        return mean_probabilities(self.ensemble(pixels * self.scale - self.shift), self.temperature)


def central(packed: Tensor, image_size: int) -> Tensor:
    """Cut out of packed pictures what `Deployed` takes: [N, S, S, 3] → [N, size, size, 3]."""
    start = round((packed.shape[1] - image_size) / 2)
    return packed[:, start : start + image_size, start : start + image_size].contiguous()
