"""Normalise pixels by the mean and the standard deviation that a network was trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.images import MEAN, STD

Colour = tuple[float, float, float]
"""A number for red, green and blue each."""


class Normalise(nn.Module):
    """Normalises pixels.

    Attributes:
        mean: The mean, of values in [0, 1].
        std: The standard deviation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Colour = MEAN, std: Colour = STD) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        exact_mean, exact_std = (torch.tensor(one, dtype=torch.float64) for one in (mean, std))
        # Not saved with the weights: the card of a model has the numbers.
        for name, values in (("scale", 1 / exact_std), ("shift", exact_mean / exact_std)):
            self.register_buffer(name, values.float().view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [N, 3, H, W] in [0, 1]."""
        return pixels * self.scale - self.shift
