"""The module that is exported: from uint8 pixels to probabilities and OOD scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.models.model import Model, mix_probabilities
from trainables.models.ood import OODScorer


class ExportModule(nn.Module):
    """A model that takes images as they are, with its calibrated mean after it.

    It computes in float32 on every processor, so that exports give equal results everywhere.
    """

    ood_means: Tensor
    ood_components: Tensor
    ood_scale: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model: Model = model.to(memory_format=torch.contiguous_format)
        self.has_ood = model.ood_scorer is not None
        if model.ood_scorer is not None:
            self.register_buffer("ood_means", model.ood_scorer.means.float())
            self.register_buffer("ood_components", model.ood_scorer.components.float())
            self.register_buffer("ood_scale", model.ood_scorer.scale.float())
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
        outputs = [part.features_and_logits(pixels) for part in self.model.parts]
        probabilities = mix_probabilities(self.model, [logits for _, logits in outputs])
        if not self.has_ood:
            return (probabilities,)
        scorer = OODScorer(self.ood_means, self.ood_components, self.ood_scale)
        return probabilities, scorer.score(*outputs[0])
