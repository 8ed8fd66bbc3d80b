"""A model, what it predicts, and its file `model.pt`.

A model is an ensemble, or the weighted mean of several ensembles' calibrated probabilities, which
may be of different backbones. `model.pt` contains tensors, numbers and JSON texts, so that loading
it runs no code of the file and needs no space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trainables.atomic_write import write_atomically
from trainables.images import ImageRows
from trainables.models.ensemble import Ensemble, mean_probabilities
from trainables.models.model_card import ModelCard, ModelError, read_card
from trainables.models.model_content import check_archive, check_backbone, check_tensors
from trainables.models.ood import OODScorer, load_ood_scorer
from trainables.models.own_networks import OwnNetworkError

FORMAT = "classifier-search model 5"
"""Value of `format` in a model file; the number changes with the file's contents."""

MAX_PARTS = 20
"""Ensembles that a model consists of, at most."""

_COMMON = ("classes", "image_size", "cache_size", "resize_mode", "levels")
"""What the cards of all parts must have in common."""


class WeightedEnsemble(nn.Module):
    """The weighted mean of the calibrated probabilities of several ensembles.

    Attributes:
        parts: The ensembles, the one with the highest weight first. It alone scores how far an
            image is from the training images, and Grad-CAM explains it alone.
        weights: Their weights, which sum to 1.
    """

    def __init__(self, parts: Sequence[Ensemble], weights: Sequence[float]) -> None:
        """Join ensembles.

        Args:
            parts: See the class.
            weights: See the class.

        Raises:
            ModelError: they do not fit together.
        """
        super().__init__()
        if not (1 <= len(parts) <= MAX_PARTS and len(parts) == len(weights)):
            raise ModelError(
                f"a model must have 1 to {MAX_PARTS} parts and a weight for each, but has"
                f" {len(parts)} and {len(weights)}"
            )
        descending = sorted(weights, reverse=True)
        if not (min(weights) > 0 and list(weights) == descending and _is_one(sum(weights))):
            raise ModelError(
                f"weights must be above 0, descend, and sum to 1, but are {tuple(weights)}"
            )
        for name in _COMMON:
            if len({getattr(part.card, name) for part in parts}) > 1:
                raise ModelError(f"the cards of its parts must agree on {name}")
        self.parts = tuple(parts)
        self.weights = tuple(weights)
        self._registered = nn.ModuleList(parts)  # so that `to` and `eval` apply
        self.eval()

    @property
    def card(self) -> ModelCard:
        """The card of the part with the highest weight."""
        return self.parts[0].card

    @property
    def ood_scorer(self) -> OODScorer | None:
        """The scorer of the part with the highest weight."""
        return self.parts[0].ood_scorer

    def forward(self, x: Tensor) -> Tensor:
        """Return calibrated probabilities, [N, classes], for pixels in [0, 1]."""
        logits = [part(x).float() for part in self.parts]
        return mix_probabilities(self, logits)


Model: TypeAlias = Ensemble | WeightedEnsemble
"""Both have `card`, `parts`, `weights` and `ood_scorer`."""


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """What a model predicts for n images, on the CPU.

    Attributes:
        probabilities: float32 [n, classes], at the temperatures of the model's parts.
        uncalibrated: float32 [n, classes], at temperature 1.
        ood_score: float32 [n]; None where the model has no OOD scorer.
    """

    probabilities: Tensor
    uncalibrated: Tensor
    ood_score: Tensor | None


def predict(model: Model, images: Tensor | ImageRows) -> ModelOutputs:
    """Predict decoded images.

    Args:
        model: The model.
        images: uint8 [n, S, S, 3] with S the card's `cache_size`.

    Raises:
        ModelError: a probability is no number, as damaged weights make it.
    """
    outputs = [part.predict_with_ood(images) for part in model.parts]
    logits = [logits for logits, _ in outputs]
    probabilities = mix_probabilities(model, logits)
    if not bool(torch.isfinite(probabilities).all()):
        raise ModelError("the model predicts probabilities that are no numbers: it is damaged")
    return ModelOutputs(
        probabilities=probabilities,
        uncalibrated=mix_probabilities(model, logits, temperature=1.0),
        ood_score=outputs[0][1],
    )


def mix_probabilities(
    model: Model, logits: Sequence[Tensor], temperature: float | None = None
) -> Tensor:
    """Return the weighted mean of the parts' probabilities: [N, classes].

    Args:
        model: The model.
        logits: By part, [members, N, classes].
        temperature: Divides the logits of all parts; None: each part's own does.
    """
    total = torch.zeros(())
    for part, weight, z in zip(model.parts, model.weights, logits, strict=True):
        divisor = part.card.temperature if temperature is None else temperature
        total = total + weight * mean_probabilities(z, divisor)
    return total


def count_members(model: Model) -> int:
    """Return the number of classifiers in all parts of a model."""
    return sum(part.card.n_members for part in model.parts)


def join(parts: Sequence[Ensemble], weights: Sequence[float]) -> Model:
    """Return the model of these parts: a single ensemble as it is.

    Raises:
        ModelError: they do not fit together.
    """
    whole = WeightedEnsemble(parts, weights)
    return whole.parts[0] if len(parts) == 1 else whole


def describe_part(ensemble: Ensemble) -> dict[str, Any]:
    """Return the card's JSON text and all tensors of an ensemble, as they stand in a file."""
    content: dict[str, Any] = {
        "card": json.dumps(asdict(ensemble.card)),
        "prefix": ensemble.prefix,
        "members": ensemble.member_weights(),
    }
    if ensemble.ood_scorer is not None:
        content["ood"] = ensemble.ood_scorer.state_dict()
    if ensemble.center_crop is not None:
        content["center_crop"] = ensemble.center_crop_weights()
    return content


def save_model(model: Model, path: Path) -> None:
    """Write a model to a file, atomically."""
    parts = [describe_part(part) for part in model.parts]
    content = {"format": FORMAT, "weights": list(model.weights), "parts": parts}
    # Given a path, torch.save would not report a full disk.
    with write_atomically(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def load_model(path: Path) -> Model:
    """Load a model from a file that `save_model` wrote.

    Raises:
        ModelError: the file is missing, damaged, or of another format.
    """
    if not path.is_file():
        raise ModelError(f"there is no model at {path}")
    check_archive(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or a malicious file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read as a model: {reason}") from None
    file_format = content.get("format") if isinstance(content, dict) else None
    if file_format != FORMAT:
        raise ModelError(f"{path} must have the format {FORMAT!r}, but has {file_format!r}")
    try:
        parts, weights = content["parts"], content["weights"]
        if len(parts) > MAX_PARTS:  # before any of them is built
            raise ModelError(f"a model has at most {MAX_PARTS} parts, but it has {len(parts)}")
        check_tensors(parts)
        return join([_load_part(part) for part in parts], [float(weight) for weight in weights])
    except OwnNetworkError as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        raise ModelError(f"{path} is damaged: {kind}{error}") from None


def _load_part(content: Any) -> Ensemble:
    card = read_card(content["card"])
    check_backbone(card, content)
    ood_scorer = load_ood_scorer(content["ood"]) if "ood" in content else None
    crop = content.get("center_crop")
    return Ensemble(card, content["prefix"], content["members"], ood_scorer, crop)


def _is_one(total: float) -> bool:
    return math.isclose(total, 1.0, abs_tol=1e-6)
