"""Which images people are shown, and what stands below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search.console.formatting import percent
from search.pipeline.evaluate import TOP
from search.pipeline.predictions_tmp import Predictions
from search.reporting.tensorboard.image_grid import RIGHT, UNKNOWN, WRONG, Tile
from trainables.augmentation import augment_and_normalise, draw_magnitudes
from trainables.images import MEAN, STD

MAX_TILES = 48
N_DRAWS = 6
"""Samples of each image that shows the augmentation."""


def augmented_tiles(images: Tensor, strength: float, image_size: int, flip: bool) -> list[Tile]:
    """Return each image as it is, followed by samples of what training sees of it.

    Args:
        images: uint8 [n, S, S, 3].
        strength: Of the augmentation, in [0, 1].
        image_size: Side in pixels that the backbone sees.
        flip: Whether images may be mirrored.
    """
    generator = torch.Generator().manual_seed(0)
    repeated = images.repeat_interleave(1 + N_DRAWS, dim=0)
    magnitudes = draw_magnitudes(len(repeated), strength, generator)
    magnitudes[:: 1 + N_DRAWS] = 0
    pixels = augment_and_normalise(repeated, image_size, magnitudes, flip, generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    seen = ((pixels * std + mean) * 255).round().clamp(0, 255).byte()
    return [Tile(image) for image in seen.permute(0, 2, 3, 1).numpy()]


def mistake_tiles(judged: Predictions, classes: Sequence[str]) -> list[Tile]:
    """Return the mistakes, the most confident first, and then the least certain right answers."""
    predicted, sure = judged.probabilities.argmax(1), judged.probabilities.max(1)
    wrong = predicted != judged.labels
    order = np.lexsort((np.where(wrong, -sure, sure), ~wrong))
    shown = order[judged.labels[order] >= 0][:MAX_TILES]
    return [
        Tile(
            pixels,
            (f"said {_share(classes, predicted[row], sure[row])}", _truth(classes, judged, row)),
            WRONG if wrong[row] else RIGHT,
        )
        for row, pixels in zip(shown, judged.images(shown).numpy(), strict=True)
    ]


def predicted_tiles(judged: Predictions, classes: Sequence[str]) -> list[Tile]:
    """Return images with their likeliest classes; wrong ones first, then the least certain."""
    predicted, sure = judged.probabilities.argmax(1), judged.probabilities.max(1)
    known = judged.labels >= 0
    wrong = known & (predicted != judged.labels)
    shown = np.lexsort((sure, ~wrong))[:MAX_TILES]
    tiles = []
    for row, pixels in zip(shown, judged.images(shown).numpy(), strict=True):
        shares = judged.probabilities[row]
        likeliest = np.argsort(-shares, kind="stable")[:TOP]
        lines = [_share(classes, index, shares[index]) for index in likeliest]
        if known[row]:
            lines.append(_truth(classes, judged, row))
        frame = WRONG if wrong[row] else RIGHT if known[row] else UNKNOWN
        tiles.append(Tile(pixels, tuple(lines), frame))
    return tiles


def spread(labels: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, ascending, with all classes' shares about what they are."""
    order = np.argsort(labels, kind="stable")
    places = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)
    return np.sort(order[places])


def _share(classes: Sequence[str], index: int, probability: float) -> str:
    return f"{classes[index]}: {percent(float(probability), 0)}"


def _truth(classes: Sequence[str], judged: Predictions, row: int) -> str:
    return f"is {classes[judged.labels[row]]}"
