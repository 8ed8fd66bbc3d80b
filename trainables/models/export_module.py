"""The ensemble as others run it: one graph from uint8 pixels to probabilities and the doubt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.images import MEAN, STD
from trainables.models.ensemble import Ensemble, mean_probabilities
from trainables.models.ood import Doubt


class Deployed(nn.Module):
    """Normalisation, frozen stages once, every member's own, softmax at the temperature, mean.

    All in float32, whatever the processor: what is exported gives the same everywhere.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor
    doubt_means: Tensor
    doubt_components: Tensor
    doubt_scale: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble.to(memory_format=torch.contiguous_format)
        self.temperature = float(ensemble.card.temperature)
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("pixel_scale", (1 / (255 * std)).view(3, 1, 1))
        self.register_buffer("pixel_shift", (mean / std).view(3, 1, 1))
        self.tells_doubt = ensemble.doubt is not None
        if ensemble.doubt is not None:
            self.register_buffer("doubt_means", ensemble.doubt.means.float())
            self.register_buffer("doubt_components", ensemble.doubt.components.float())
            self.register_buffer("doubt_scale", ensemble.doubt.scale.float())
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Classify pictures.

        Args:
            pictures: uint8 [N, H, W, 3], RGB, H = W = the card's `image_size`.

        Returns:
            Probabilities: float32 [N, classes]; and, where the model has it, the doubt: float32
            [N] (see `trainables.models.ood`).
        """
        pixels = pictures.permute(0, 3, 1, 2).to(torch.float32)
        features, logits = self.ensemble.features_and_logits(
            pixels * self.pixel_scale - self.pixel_shift
        )
        probabilities = mean_probabilities(logits, self.temperature)
        if not self.tells_doubt:
            return (probabilities,)
        doubt = Doubt(self.doubt_means, self.doubt_components, self.doubt_scale)
        return probabilities, doubt.judge(features, logits)


def central(packed: Tensor, image_size: int) -> Tensor:
    """Cut out of packed pictures what `Deployed` takes: [N, S, S, 3] → [N, size, size, 3]."""
    start = round((packed.shape[1] - image_size) / 2)
    return packed[:, start : start + image_size, start : start + image_size].contiguous()
