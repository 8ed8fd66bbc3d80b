"""Which images people are shown of a judged model, and keeping those while they are at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from search.console.formatting import readable
from search.reporting.gallery import Gallery
from search.reporting.run_record import Prediction, read_predictions
from search.runs.run_folder import RunFolder
from trainables.images import ImageRows
from trainables.models.ensemble import Ensemble
from trainables.models.grad_cam import GradCamError, grad_cam

MAX_MISTAKES = 60
"""Held-out images that the model has wrong, the most confident first."""

MAX_LEAST_CONFIDENT = 12
"""Held-out images that the model has right, the least confident first."""

MAX_EXTERNAL = 60
"""Images from elsewhere, those it has wrong first, then by doubt."""

_MAX_ATTRIBUTED = {"data": 16, "external": 8}
"""Those of them for which it is told where the model looked: a second or two each on a CPU."""

_TABLES = {"data": "test_predictions.csv", "external": "external_predictions.csv"}


def mistakes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the wrong predictions, the most confident first."""
    wrong = [p for p in predictions if p.correct is False]
    return sorted(wrong, key=lambda p: -p.ranked[0][1])


def least_confident(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the right predictions, the least confident first."""
    return sorted((p for p in predictions if p.correct), key=lambda p: p.ranked[0][1])


def least_confident_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return predictions, wrong ones first, then by how unsure the model is."""
    return sorted(predictions, key=lambda p: (p.correct is not False, p.ranked[0][1]))


def samples(part: str, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions that are shown with their images, the most telling first."""
    if part == "external":
        return least_confident_first(predictions)[:MAX_EXTERNAL]
    return mistakes(predictions)[:MAX_MISTAKES] + least_confident(predictions)[:MAX_LEAST_CONFIDENT]


def save_samples(
    folder: RunFolder, ensemble: Ensemble, part: str, images: Tensor | ImageRows
) -> None:
    """Keep the images that the report will show, and where the model looked in the first of them.

    Args:
        folder: Has the predictions; gets the images and the section `samples`.
        ensemble: The model that was judged.
        part: "data", which are the held-out images, or "external".
        images: uint8 [N, S, S, 3] in the order of the predictions.
    """
    predictions, gallery = read_predictions(folder.path / _TABLES[part]), Gallery(folder.path)
    rows = {id(prediction): row for row, prediction in enumerate(predictions)}
    shown = samples(part, predictions)
    taken = images[torch.tensor([rows[id(one)] for one in shown], dtype=torch.long)]
    gallery.keep(part, [one.name for one in shown], taken.numpy(), ensemble.card.image_size)
    gallery.forget_heat(part)
    n, problem = min(len(shown), _MAX_ATTRIBUTED[part]), None
    classes = [readable(name) for name in ensemble.card.classes]
    said = [classes.index(one.ranked[0][0]) for one in shown[:n]]
    try:
        heats = grad_cam(ensemble, taken[:n], said) if n else ()
        for one, heat in zip(shown[:n], heats, strict=True):
            if heat.any():
                gallery.keep_heat(part, one.name, heat)
    except (GradCamError, RuntimeError) as error:  # a GPU may be too small for gradients
        problem = (str(error).splitlines() or [type(error).__name__])[0]
    kept = {"images": len(shown), "attributed": 0 if problem else n, "problem": problem}
    folder.note("samples", {**folder.summary.get("samples", {}), part: kept})
