"""An ensemble of K classifiers with common frozen stages.

It may have a centre-crop branch (`trainables.models.center_crop`) and a scorer of
out-of-distribution images (`trainables.models.ood`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.compute import inference_batch_size, prediction_precision
from trainables.images import ImageRows, crop_pixels
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.center_crop import CenterCropBranch
from trainables.models.classifier import (
    Classifier,
    Weights,
    create_head,
    load_weights_from_stage,
    weights_from_stage,
)
from trainables.models.model_card import ModelCard, ModelError
from trainables.models.model_content import check_heads
from trainables.models.network_cut import N_STAGES
from trainables.models.normalisation import Normalise
from trainables.models.ood import OODScorer


class Ensemble(nn.Module):
    """K classifiers whose frozen stages are stored and run only once.

    Attributes:
        card: Describes the model.
        classifiers: The members.
        ood_scorer: Scores how far an image is from the training images; None if not fitted.
        center_crop: The centre-crop branch; None if the model has none.
    """

    def __init__(
        self,
        card: ModelCard,
        prefix: Weights,
        members: Sequence[Weights],
        ood_scorer: OODScorer | None = None,
        center_crop: Weights | None = None,
    ) -> None:
        """Build the networks and load their weights.

        Args:
            card: Describes the model.
            prefix: Weights of the frozen stages.
            members: Each member's unfrozen stages and head, from `Classifier.member_weights`.
            ood_scorer: See the class.
            center_crop: Weights of the centre-crop branch, as `center_crop_weights` returns them,
                if the card has one.

        Raises:
            ModelError: the weights or the scorer do not fit the card.
        """
        super().__init__()
        self.card = card
        self.ood_scorer = ood_scorer
        if len(members) != card.n_members:
            raise ModelError(
                f"the card is of {card.n_members} members, but there are {len(members)}"
            )
        if card.center_crop != (center_crop is not None):
            raise ModelError("only one of card and weights has a centre-crop branch")
        backbone = self._create_backbone()
        backbone.freeze(card.freeze_depth)
        scored = (card.n_members, backbone.feature_size)
        if ood_scorer is not None and ood_scorer.means.shape != scored:
            raise ModelError(f"the OOD scorer is not of [members, features] = {scored}")
        check_heads(card, backbone.feature_size, members)
        head = create_head(backbone.feature_size, len(card.classes), card.hidden_units, 0.0)
        first = Classifier(backbone, head)
        shared = {id(stage): stage for stage in backbone.stages[: card.freeze_depth]}
        self.classifiers = [first]
        try:
            frozen = backbone.stages[: card.freeze_depth].load_state_dict(prefix, strict=False)
            if frozen.missing_keys:
                raise ModelError(f"the prefix lacks {', '.join(frozen.missing_keys[:3])}")
            first.load_member_weights(members[0])
            for weights in members[1:]:  # one by one: the first that does not fit is the last
                self.classifiers.append(copy.deepcopy(first, dict(shared)))
                self.classifiers[-1].load_member_weights(weights)
            self.center_crop = (
                None if center_crop is None else self._center_crop_branch(center_crop)
            )
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"the weights do not fit {card.backbone}: {reason}") from None
        self._registered = nn.ModuleList(self.classifiers)  # so that `to` and `eval` apply
        self.to(memory_format=torch.channels_last)
        self.eval()

    def _create_backbone(self) -> Backbone:
        """Build the backbone with random weights, and the normalisation that the card has."""
        backbone = create_backbone(self.card.backbone, image_size=self.card.image_size)
        backbone.normalise = Normalise(self.card.mean, self.card.std)
        return backbone

    def _center_crop_branch(self, weights: Weights) -> CenterCropBranch:
        """Build the centre-crop branch on the members' frozen stages."""
        depth, frozen = self.card.freeze_depth, self.classifiers[0].backbone.stages
        backbone = self._create_backbone()
        for index in range(depth):
            backbone.stages[index] = frozen[index]
        backbone.freeze(N_STAGES)
        load_weights_from_stage(backbone, depth, weights)
        heads = {"weight": weights["weight"], "bias": weights["bias"]}
        shape = (self.card.n_members, len(self.card.classes), backbone.feature_size)
        if heads["weight"].shape != shape or heads["bias"].shape != shape[:2]:
            raise ModelError(
                f"the centre-crop heads must be [members, classes, features] = {shape}, but got"
                f" {tuple(heads['weight'].shape)}"
            )
        return CenterCropBranch(backbone, heads)

    @property
    def parts(self) -> tuple[Ensemble, ...]:
        """What a model consists of (`trainables.models.model.Model`): the ensemble alone."""
        return (self,)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each part."""
        return (1.0,)

    @property
    def prefix(self) -> Weights:
        """The weights of the frozen stages."""
        depth = self.card.freeze_depth
        stages = self.classifiers[0].backbone.stages[:depth]
        return {k: v.detach().cpu() for k, v in stages.state_dict().items()}

    def member_weights(self) -> list[Weights]:
        """Return the weights of each member's unfrozen stages and head."""
        return [classifier.member_weights() for classifier in self.classifiers]

    def center_crop_weights(self) -> Weights | None:
        """Return the centre-crop heads and the branch's stages that no member has in common."""
        if self.center_crop is None:
            return None
        stages = weights_from_stage(self.center_crop.backbone, self.card.freeze_depth)
        return {k: v.detach().cpu() for k, v in stages.items()} | self.center_crop.head_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Return each member's logits, [members, N, classes], for pixels in [0, 1]."""
        return self.features_and_logits(x)[1]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each member's pooled features and logits for pixels in [0, 1].

        Args:
            x: [N, 3, H, W].

        Returns:
            [members, N, feature_size] and [members, N, classes].
        """
        depth = self.card.freeze_depth
        shared = self.classifiers[0].backbone(x, 0, depth)
        outputs = [classifier.features_and_logits(shared, depth) for classifier in self.classifiers]
        features, logits = (torch.stack(parts) for parts in zip(*outputs, strict=True))
        if self.center_crop is not None:
            logits = logits + self.center_crop(x)
        return features, logits

    def logits(self, images: Tensor | ImageRows, batch_size: int | None = None) -> Tensor:
        """Return each member's logits for decoded images; see `predict_with_ood`."""
        return self.predict_with_ood(images, batch_size)[0]

    @torch.no_grad()
    def predict_with_ood(
        self, images: Tensor | ImageRows, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return each member's logits and the OOD scores of decoded images.

        Args:
            images: uint8 [N, S, S, 3] with S the card's `cache_size`.
            batch_size: Images that are computed together; None: see `inference_batch_size`.

        Returns:
            Logits, float32 [members, N, classes], and OOD scores, float32 [N] or None if the model
            has no scorer; both on the CPU.
        """
        device = next(self.parameters()).device
        batch_size = batch_size or inference_batch_size(device, self.card.image_size)
        parts = [torch.empty(len(self.classifiers), 0, len(self.card.classes))]
        ood_scores = [torch.empty(0)]
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device)
            with prediction_precision(device):
                outputs = self.features_and_logits(crop_pixels(batch, self.card.image_size))
            features, logits = (output.float().cpu() for output in outputs)
            parts.append(logits)
            if self.ood_scorer is not None:
                ood_scores.append(self.ood_scorer.score(features, logits))
        return torch.cat(parts, dim=1), None if self.ood_scorer is None else torch.cat(ood_scores)


def mean_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Average the members' softmax: [members, N, classes] → [N, classes]."""
    return torch.softmax(logits / temperature, dim=2).mean(dim=0)
