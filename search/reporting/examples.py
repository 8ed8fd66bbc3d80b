"""Choose the images that the report shows, and save them while they are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search.console.formatting import first_line
from search.evaluation.predictions import PredictedImage, Predictions
from search.reporting.gallery import Gallery
from search.runs.run_folder import RunFolder
from search.runs.summary import Samples
from trainables.models.grad_cam import GradCamError, grad_cam
from trainables.models.model import Model

MAX_TOP_LOSSES = 60
"""Wrong predictions of the test set, the most confident first."""

MAX_LEAST_CONFIDENT = 12
"""Correct predictions of the test set, the least confident first."""

MAX_EXTERNAL = 60
"""External images, wrong predictions first, then the least confident."""

MAX_DUPLICATES = 24
"""Pairs of near-duplicates, the most severe first."""

_MAX_WITH_GRADCAM = {"data": 16, "external": 8}
"""The first of them get a heat map, which takes a second or two each on a CPU."""


def top_losses(predictions: Sequence[PredictedImage]) -> list[PredictedImage]:
    """Return the wrong predictions, the most confident first."""
    wrong = [p for p in predictions if p.correct is False]
    return sorted(wrong, key=lambda p: -p.ranked[0][1])


def least_confident(predictions: Sequence[PredictedImage]) -> list[PredictedImage]:
    """Return the correct predictions, the least confident first."""
    return sorted((p for p in predictions if p.correct), key=lambda p: p.ranked[0][1])


def least_confident_first(predictions: Sequence[PredictedImage]) -> list[PredictedImage]:
    """Sort predictions: wrong ones first, then the least confident."""
    return sorted(predictions, key=lambda p: (p.correct is not False, p.ranked[0][1]))


def samples(part: str, predictions: Sequence[PredictedImage]) -> list[PredictedImage]:
    """Return the predictions that are shown with their images."""
    if part == "external":
        return least_confident_first(predictions)[:MAX_EXTERNAL]
    return [
        *top_losses(predictions)[:MAX_TOP_LOSSES],
        *least_confident(predictions)[:MAX_LEAST_CONFIDENT],
    ]


def save_samples(folder: RunFolder, model: Model, part: str, predictions: Predictions) -> None:
    """Save the images that the report shows, with Grad-CAM heat maps of the first of them.

    Args:
        folder: Gets the images and the section `samples`.
        model: The model whose predictions they are.
        part: "data" for the test set, or "external".
        predictions: Predictions of all images of that set.
    """
    listed, gallery = predictions.top_k(), Gallery(folder.path)
    rows = {id(one): row for row, one in enumerate(listed)}
    shown = samples(part, listed)
    images = predictions.images(np.array([rows[id(one)] for one in shown], np.int64))
    gallery.save(part, [one.name for one in shown], images.numpy(), model.card.image_size)
    gallery.delete_heatmaps(part)
    n, failure = min(len(shown), _MAX_WITH_GRADCAM[part]), None
    predicted = [predictions.classes.index(one.ranked[0][0]) for one in shown[:n]]
    try:
        heatmaps = grad_cam(model, images[:n], predicted) if n else ()
        for one, heatmap in zip(shown[:n], heatmaps, strict=True):
            if heatmap.any():
                gallery.save_heatmap(part, one.name, heatmap)
    except (GradCamError, RuntimeError) as error:  # a GPU may be too small for gradients
        failure = first_line(error)
    saved = Samples(images=len(shown), n_with_gradcam=0 if failure else n, error=failure)
    folder.write_summary(
        replace(folder.summary, samples={**(folder.summary.samples or {}), part: saved})
    )
