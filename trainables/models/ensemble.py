"""Stages and a head make a classifier; K of them over one frozen prefix make the ensemble.

It may look at each image twice: see `trainables.models.center_crop`.

`model.pt` holds tensors and one JSON text, and needs no code of the space to be loaded.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from spaces.base import ResizeMode
from trainables.atomic_write import write_atomically
from trainables.compute import mixed_precision
from trainables.images import ImageRows, crop_and_normalise, to_square
from trainables.models.backbones import N_STAGES, Backbone, create_backbone
from trainables.models.center_crop import CenterCropBranch
from trainables.models.ood import OODScorer, load_ood_scorer

FORMAT = "classifier-search model 1"
_PREDICT_BATCH = 64

Weights = dict[str, Tensor]


class ModelError(ValueError):
    """A file is no model of ours, or is damaged."""


@dataclass(frozen=True)
class ModelCard:
    """All that a model is, besides its tensors."""

    backbone: str
    classes: tuple[str, ...]
    image_size: int
    cache_size: int
    """Side in pixels of the square that images become before `image_size` is cut out of it."""
    freeze_depth: int
    hidden_units: int
    n_members: int
    temperature: float = 1.0
    resize_mode: ResizeMode = "crop"  # as all were before a file said so
    center_crop: bool = False

    def to_square(self, image: Image.Image) -> np.ndarray:
        """Make an RGB image what the model takes: uint8 [cache_size, cache_size, 3]."""
        return to_square(image, self.cache_size, self.image_size, self.resize_mode)


def create_head(feature_size: int, n_classes: int, hidden_units: int, dropout: float) -> nn.Module:
    """Build a linear head, or pooling → dense ReLU → dropout → output."""
    if hidden_units == 0:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(feature_size, n_classes))
    return nn.Sequential(
        nn.Linear(feature_size, hidden_units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_units, n_classes),
    )


class Classifier(nn.Module):
    """A backbone, frozen to some depth, and a head."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor, stage_output: int = 0) -> Tensor:
        """Return logits [N, classes] from what lies at a boundary (0: normalised pixels)."""
        return self.features_and_logits(x, stage_output)[1]

    def features_and_logits(self, x: Tensor, stage_output: int = 0) -> tuple[Tensor, Tensor]:
        """Return the pooled features [N, feature_size] too."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.float()  # a bank's features are bfloat16, and nothing else would convert them
        features = self.backbone(x, stage_output, 5)
        # The head is cheap and decides: it stays out of the half precision of the stages.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.float())
        return features, logits

    def member_weights(self) -> Weights:
        """Copy what training changed, to the CPU: the unfrozen stages and the head."""
        kept = stages_from(self.backbone, self.backbone.freeze_depth)
        kept |= {f"head.{key}": value for key, value in self.head.state_dict().items()}
        return {key: value.detach().to("cpu", copy=True) for key, value in kept.items()}

    def load_member_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put `member_weights` back.

        Raises:
            ModelError: they are not those of the unfrozen stages.
        """
        _load_stages(self.backbone, self.backbone.freeze_depth, weights)
        head = {k.removeprefix("head."): v for k, v in weights.items() if k[:5] == "head."}
        self.head.load_state_dict(head)


def stages_from(backbone: Backbone, depth: int) -> Weights:
    """Return the weights of a backbone's stages from a depth on: `stages.<stage>.…`."""
    return {
        f"stages.{key}": value
        for key, value in backbone.stages.state_dict().items()
        if int(key.split(".")[0]) >= depth
    }


def _load_stages(backbone: Backbone, depth: int, weights: Mapping[str, Tensor]) -> None:
    """Put what `stages_from` returned back; other keys are none of its business."""
    stages = {k: v for k, v in weights.items() if k.startswith("stages.")}
    own = stages_from(backbone, depth).keys()
    # A stage that kept its random weights would only show in wrong answers.
    for what, keys in (("lack", own - stages.keys()), ("hold other", stages.keys() - own)):
        if keys:
            names = ", ".join(sorted(key.removeprefix("stages.") for key in keys)[:3])
            raise ModelError(f"the weights {what} stages' tensors: {names}")
    backbone.stages.load_state_dict(
        {k.removeprefix("stages."): v for k, v in stages.items()}, strict=False
    )


class Ensemble(nn.Module):
    """K classifiers that share their frozen stages, which are stored and run once."""

    def __init__(
        self,
        card: ModelCard,
        prefix: Weights,
        members: Sequence[Weights],
        ood_scorer: OODScorer | None = None,
        center_crop: Weights | None = None,
    ) -> None:
        """Rebuild the networks from their weights.

        Args:
            card: What they are.
            prefix: Weights of the frozen stages.
            members: Each member's own.
            ood_scorer: Scores how unlike the training images others are; None where not fitted.
            center_crop: As `center_crop_weights` returns it, where the card tells of one.

        Raises:
            ModelError: the weights do not fit the card.
        """
        super().__init__()
        self.card = card
        self.ood_scorer = ood_scorer
        if len(members) != card.n_members:
            raise ModelError(f"the card tells of {card.n_members} members, not of {len(members)}")
        if card.center_crop != (center_crop is not None):
            raise ModelError("the card and the weights do not agree whether there is a second look")
        backbone = create_backbone(card.backbone)
        backbone.freeze(card.freeze_depth)
        head = create_head(backbone.feature_size, len(card.classes), card.hidden_units, 0.0)
        first = Classifier(backbone, head)
        shared = {id(stage): stage for stage in backbone.stages[: card.freeze_depth]}
        self.classifiers = [first] + [copy.deepcopy(first, dict(shared)) for _ in members[1:]]
        try:
            frozen = backbone.stages[: card.freeze_depth].load_state_dict(prefix, strict=False)
            if frozen.missing_keys:
                raise ModelError(f"the prefix lacks {', '.join(frozen.missing_keys[:3])}")
            for classifier, weights in zip(self.classifiers, members, strict=True):
                classifier.load_member_weights(weights)
            self.center_crop = (
                None if center_crop is None else self._center_crop_branch(center_crop)
            )
        except (ModelError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"the weights do not fit {card.backbone}: {reason}") from None
        self._registered = nn.ModuleList(self.classifiers)  # what `to` and `eval` reach
        self.to(memory_format=torch.channels_last)
        self.eval()

    def _center_crop_branch(self, weights: Weights) -> CenterCropBranch:
        """Build the second look, which shares the members' frozen stages."""
        depth, frozen = self.card.freeze_depth, self.classifiers[0].backbone.stages
        backbone = create_backbone(self.card.backbone)
        for index in range(depth):
            backbone.stages[index] = frozen[index]
        backbone.freeze(N_STAGES)
        _load_stages(backbone, depth, weights)
        heads = {"weight": weights["weight"], "bias": weights["bias"]}
        shape = (self.card.n_members, len(self.card.classes), backbone.feature_size)
        if heads["weight"].shape != shape or heads["bias"].shape != shape[:2]:
            raise ModelError(
                f"the second look's heads must be [members, classes, features] = {shape}, but are"
                f" {tuple(heads['weight'].shape)}"
            )
        return CenterCropBranch(backbone, heads)

    @property
    def prefix(self) -> Weights:
        """The weights of the frozen stages."""
        depth = self.card.freeze_depth
        stages = self.classifiers[0].backbone.stages[:depth]
        return {k: v.detach().cpu() for k, v in stages.state_dict().items()}

    def member_weights(self) -> list[Weights]:
        """The weights of each member's own stages and head."""
        return [classifier.member_weights() for classifier in self.classifiers]

    def center_crop_weights(self) -> Weights | None:
        """The second look's heads, and those of its stages that no member shares."""
        if self.center_crop is None:
            return None
        stages = stages_from(self.center_crop.backbone, self.card.freeze_depth)
        return {k: v.detach().cpu() for k, v in stages.items()} | self.center_crop.head_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Return each member's logits, [members, N, classes], from normalised pixels."""
        return self.features_and_logits(x)[1]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled features, [members, N, feature_size], too."""
        depth = self.card.freeze_depth
        shared = self.classifiers[0].backbone(x, 0, depth)
        made = [classifier.features_and_logits(shared, depth) for classifier in self.classifiers]
        features, logits = (torch.stack(both) for both in zip(*made, strict=True))
        if self.center_crop is not None:
            logits = logits + self.center_crop(x)
        return features, logits

    def logits(self, images: Tensor | ImageRows) -> Tensor:
        """Return each member's logits for packed images; see `predict_with_ood`."""
        return self.predict_with_ood(images)[0]

    @torch.no_grad()
    def predict_with_ood(self, images: Tensor | ImageRows) -> tuple[Tensor, Tensor | None]:
        """Return each member's logits for packed images, and how far these are to be doubted.

        Args:
            images: uint8 [N, S, S, 3] with S the card's `cache_size`.

        Returns:
            float32 [members, N, classes] on the CPU; and the doubt, float32 [N] (see
            `trainables.models.ood`), or None where the model has none.
        """
        device = next(self.parameters()).device
        parts = [torch.empty(len(self.classifiers), 0, len(self.card.classes))]
        ood_scores = [torch.empty(0)]
        for start in range(0, len(images), _PREDICT_BATCH):
            batch = images[start : start + _PREDICT_BATCH].to(device)
            with mixed_precision(device):
                made = self.features_and_logits(crop_and_normalise(batch, self.card.image_size))
            features, logits = (both.float().cpu() for both in made)
            parts.append(logits)
            if self.ood_scorer is not None:
                ood_scores.append(self.ood_scorer.score(features, logits))
        return torch.cat(parts, dim=1), None if self.ood_scorer is None else torch.cat(ood_scores)

    def probabilities(self, images: Tensor | ImageRows) -> Tensor:
        """Return the members' mean probability of each class: float32 [N, classes], on the CPU."""
        return mean_probabilities(self.logits(images), self.card.temperature)

    def save(self, path: Path) -> None:
        """Write `model.pt`; a crash in the middle leaves the old file whole."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "card": json.dumps(asdict(self.card)),
            "prefix": self.prefix,
            "members": self.member_weights(),
        }
        if self.ood_scorer is not None:
            content["ood_score"] = self.ood_scorer.state()
        if self.center_crop is not None:
            content["center_crop"] = self.center_crop_weights()
        # To a path, torch would not say that the disk is full.
        with write_atomically(path) as partial, partial.open("wb") as file:
            torch.save(content, file)


def mean_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Average the members' softmax: [members, N, classes] → [N, classes]."""
    return torch.softmax(logits / temperature, dim=2).mean(dim=0)


def load_model(path: Path) -> Ensemble:
    """Read a `model.pt`.

    Raises:
        ModelError: the file is missing, is not ours, or is damaged.
    """
    if not path.is_file():
        raise ModelError(f"there is no model at {path}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or a hostile file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read as a model: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(f"{path} is no model of this program (it lacks the mark {FORMAT!r})")
    try:
        card = _read_card(content["card"])
        ensemble = Ensemble(
            card, content["prefix"], content["members"], center_crop=content.get("center_crop")
        )
        if "ood_score" in content:
            size = ensemble.classifiers[0].backbone.feature_size
            ensemble.ood_scorer = load_ood_scorer(content["ood_score"], card.n_members, size)
        return ensemble
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        raise ModelError(f"{path} is damaged: {kind}{error}") from None


def _read_card(text: str) -> ModelCard:
    content = json.loads(text)
    card = ModelCard(**{**content, "classes": tuple(content["classes"])})
    numbers = (card.image_size, card.cache_size, card.freeze_depth, card.hidden_units)
    if not all(isinstance(n, int) and 0 <= n <= 65536 for n in numbers):
        raise ModelError(f"a size on its card is out of range: {numbers}")
    if not 1 <= card.image_size <= card.cache_size:
        raise ModelError(
            f"1 <= image_size <= cache_size must hold, but its card has {card.image_size} and"
            f" {card.cache_size}"
        )
    if card.resize_mode not in get_args(ResizeMode):
        raise ModelError(f"its resize_mode must be 'pad' or 'crop', but is {card.resize_mode!r}")
    if not isinstance(card.center_crop, bool):
        raise ModelError(f"its center_crop must be true or false, but is {card.center_crop!r}")
    if not (isinstance(card.temperature, int | float) and 0 < card.temperature < math.inf):
        raise ModelError(f"its temperature must be a number above 0, but is {card.temperature!r}")
    if not (len(card.classes) >= 2 and all(isinstance(name, str) for name in card.classes)):
        raise ModelError("its card names fewer than two classes")
    return card
