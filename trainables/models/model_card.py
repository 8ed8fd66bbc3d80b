"""The card of a model: its description, everything besides its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
from PIL import Image

from spaces.errors import SearchError
from spaces.rules import MAX_RESIZE_SIZE, ResizeMode
from trainables.images import MEAN, STD, to_square
from trainables.json_text import parse_json
from trainables.levels import DEFAULT_LEVELS, Levels
from trainables.models.normalisation import Colour


class ModelError(SearchError):
    """A model file is missing, damaged, or of another format."""


@dataclass(frozen=True)
class ModelCard:
    """The description of a model: everything besides its tensors."""

    backbone: str
    classes: tuple[str, ...]
    image_size: int
    """Side in pixels of the square that the backbone sees."""
    cache_size: int
    """Side in pixels of the square that images are resized to before `image_size` is cut out."""
    freeze_depth: int
    """Number of leading stages that the members have in common."""
    hidden_units: int
    n_members: int
    temperature: float = 1.0
    """What logits are divided by before the softmax (calibration)."""
    resize_mode: ResizeMode = "pad"
    """How images are made square; see `trainables.images.to_square`."""
    center_crop: bool = False
    """Whether the model has a centre-crop branch."""
    mean: Colour = MEAN
    """What the backbone normalises red, green and blue by, of values in [0, 1]."""
    std: Colour = STD
    """Their standard deviation."""
    licence: str = ""
    """Of the pretrained weights, as published; "unknown", or "" for random weights."""
    levels: Levels = DEFAULT_LEVELS
    """Black and white of images of more than 8 bits."""

    def to_square(self, image: Image.Image) -> np.ndarray:
        """Resize an RGB image for the model: uint8 [cache_size, cache_size, 3]."""
        return to_square(image, self.cache_size, self.image_size, self.resize_mode)


def read_card(text: str) -> ModelCard:
    """Read a card from the JSON text of a model file.

    Raises:
        ModelError: a field is missing or out of range.
    """
    content = parse_json(text)
    if missing := [field.name for field in fields(ModelCard) if field.name not in content]:
        raise ModelError(f"its card lacks {', '.join(missing)}")
    sequences = {name: tuple(content[name]) for name in ("classes", "mean", "std")}
    levels = Levels(*map(tuple, content["levels"]))
    card = ModelCard(**{**content, **sequences, "levels": levels})
    numbers = (card.image_size, card.cache_size, card.freeze_depth, card.hidden_units)
    if not all(isinstance(n, int) and 0 <= n <= 65536 for n in numbers):
        raise ModelError(f"a size on its card is out of range: {numbers}")
    if not 1 <= card.image_size <= card.cache_size <= MAX_RESIZE_SIZE:
        raise ModelError(
            f"1 <= image_size <= cache_size <= {MAX_RESIZE_SIZE} must hold, but its card has"
            f" {card.image_size} and {card.cache_size}"
        )
    if card.resize_mode not in get_args(ResizeMode):
        raise ModelError(f"its resize_mode must be 'pad' or 'crop', but is {card.resize_mode!r}")
    if not isinstance(card.center_crop, bool):
        raise ModelError(f"its center_crop must be true or false, but is {card.center_crop!r}")
    if not (isinstance(card.temperature, int | float) and 0 < card.temperature < math.inf):
        raise ModelError(f"its temperature must be a number above 0, but is {card.temperature!r}")
    colours = (*card.mean, *card.std)
    if len(card.mean) != 3 or len(card.std) != 3 or not all(map(_is_finite, colours)):
        raise ModelError(f"its mean and std must be three numbers each, but are {colours}")
    if min(card.std) <= 0:
        raise ModelError(f"its std must be above 0, but is {card.std}")
    if not all(map(_is_range, levels)):
        raise ModelError(f"its levels must be black and white, but are {levels}")
    if not (len(card.classes) >= 2 and all(isinstance(name, str) for name in card.classes)):
        raise ModelError("its card names fewer than two classes")
    if not isinstance(card.licence, str):
        raise ModelError(f"its licence must be a name, but is {card.licence!r}")
    return card


def _is_range(levels: tuple[object, ...]) -> bool:
    return len(levels) == 2 and all(map(_is_finite, levels)) and levels[0] < levels[1]  # type: ignore[operator]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
