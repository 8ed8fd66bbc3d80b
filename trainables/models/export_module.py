"""The module that is exported: from uint8 pixels to probabilities and OOD scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.models.ensemble import Ensemble, mean_probabilities
from trainables.models.ood import OODScorer


class ExportModule(nn.Module):
    """An ensemble that takes images as they are, with its calibrated mean after it.

    It computes in float32 on every processor, so that exports give equal results everywhere.
    """

    ood_means: Tensor
    ood_components: Tensor
    ood_scale: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble.to(memory_format=torch.contiguous_format)
        self.temperature = float(ensemble.card.temperature)
        self.has_ood = ensemble.ood_scorer is not None
        if ensemble.ood_scorer is not None:
            self.register_buffer("ood_means", ensemble.ood_scorer.means.float())
            self.register_buffer("ood_components", ensemble.ood_scorer.components.float())
            self.register_buffer("ood_scale", ensemble.ood_scorer.scale.float())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify images.

        Args:
            images: uint8 [N, H, W, 3], RGB, H = W = the card's `image_size`.

        Returns:
            Probabilities, float32 [N, classes]; and OOD scores, float32 [N], if the model has a
            scorer (see `trainables.models.ood`).
        """
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        features, logits = self.ensemble.features_and_logits(pixels)
        probabilities = mean_probabilities(logits, self.temperature)
        if not self.has_ood:
            return (probabilities,)
        scorer = OODScorer(self.ood_means, self.ood_components, self.ood_scale)
        return probabilities, scorer.score(features, logits)
