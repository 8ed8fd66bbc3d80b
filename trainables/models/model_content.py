"""Check a model file of unknown origin before anything of the size that it claims is built.

Every tensor must be in the file, as large as it says, so that a small file cannot fill the memory:
neither by compression, nor by one tensor that is referred to many times or stretched, nor by a card
that names larger networks than the file has weights for.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spaces.rules import is_own_network
from trainables.models.cost import count_values
from trainables.models.model_card import ModelCard, ModelError

MAX_MEMBERS = 100
"""Members of an ensemble, at most: as many folds as a space may have."""

_MAX_REFERENCES = 2
"""How often a tensor of a file is referred to, in the mean: networks may tie weights."""
_MIN_VALUES = 1_000_000
"""Values of a network that are too few to be worth a check: 4 MB."""


def check_archive(path: Path) -> None:
    """Check that a file is an archive that unpacking does not enlarge.

    Raises:
        ModelError: it is something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} cannot be read as a model: {error}") from None
    if n_bytes > path.stat().st_size:
        raise ModelError(
            f"{path} cannot be read as a model: its {path.stat().st_size:,} bytes unpack to"
            f" {n_bytes:,}, and a model is not compressed"
        )


def check_tensors(parts: Any) -> None:
    """Check that all weights are finite numbers, each stored once.

    Args:
        parts: Contents of the model's parts, as `torch.load` returns them.

    Raises:
        ModelError: they are not.
    """
    most = max((len(part["members"]) for part in parts), default=0)
    if most > MAX_MEMBERS:
        raise ModelError(f"a part has at most {MAX_MEMBERS} members, but one has {most}")
    tensors = [tensor for part in parts for tensor in _tensors(part)]
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if claimed > _MAX_REFERENCES * sum(stored.values()):
        raise ModelError(
            f"its weights take {claimed:,} bytes, but it stores {sum(stored.values()):,}"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ModelError("a weight is no finite number")


def check_backbone(card: ModelCard, content: Any) -> None:
    """Check that a part has weights for the network that its card names.

    Raises:
        ModelError: the network is larger; a network of the user's own is not looked at.
    """
    if is_own_network(card.backbone):
        return
    needed = count_values(card.backbone, card.image_size)
    held = sum(tensor.numel() for tensor in _tensors(content))
    if needed is not None and needed > held + _MIN_VALUES:
        raise ModelError(
            f"{card.backbone} for images of {card.image_size} pixels has {needed:,} values, but"
            f" there are {held:,}"
        )


def check_heads(card: ModelCard, feature_size: int, members: Any) -> None:
    """Check that members' heads have the card's shape, before one of that shape is built.

    Raises:
        ModelError: one has another.
    """
    n_classes, hidden = len(card.classes), card.hidden_units
    key, shape = ("0", (hidden, feature_size)) if hidden else ("1", (n_classes, feature_size))
    for weights in members:
        weight = weights.get(f"head.{key}.weight")
        found = None if weight is None else tuple(weight.shape)
        if found != shape:
            raise ModelError(
                f"the weights do not fit {card.backbone}: head.{key}.weight must be {shape}, but is"
                f" {found}"
            )


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield the tensors of a part.

    Raises:
        ModelError: something else stands in the place of one.
    """
    groups = [
        content["prefix"],
        *content["members"],
        content.get("ood"),
        content.get("center_crop"),
    ]
    for group in filter(None, groups):
        if not isinstance(group, Mapping):
            raise ModelError(
                f"weights must be a dictionary, but are of type {type(group).__name__}"
            )
        for name, tensor in group.items():
            if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
                raise ModelError(f"{str(name)[:60]!r} is no dense tensor")
            yield tensor
