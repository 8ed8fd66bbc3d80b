"""Show a whole run in TensorBoard: text, images, precision-recall curves, features.

The trials are in `search.reporting.tensorboard.trial_boards`.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.text.summary_v2 import text_pb
from torch import Tensor
from torch.utils.tensorboard.summary import pr_curve

from search.console.formatting import compact, count
from search.evaluation.predictions import Predictions
from search.reporting.gallery import AUGMENTATION
from search.reporting.tensorboard.event_file import append_summary
from search.reporting.tensorboard.image_grid import (
    N_DRAWS,
    as_jpeg,
    augmented_tiles,
    draw_grid,
    predicted_tiles,
    resize,
    stratified_rows,
    top_loss_tiles,
)
from search.reporting.tensorboard.trial_boards import experiment_summary
from search.runs.run_folder import RunFolder
from search.runs.summary import Settings
from spaces.base import Space
from trainables.atomic_write import write_atomically
from trainables.compute import inference_batch_size, mixed_precision
from trainables.images import ImageRows, crop_pixels
from trainables.models.model import Model

_N_AUGMENTED = 6  # images in a grid of augmentation, a row each
_COLUMNS = 8  # of the other grids
_MAX_CURVES = 50  # precision-recall curves of a set, a class each
_CONFUSION_DPI = 110
_MAX_POINTS = 1000  # in the projector; more are slow to turn in a browser
_MAX_DIMENSIONS = 64  # principal components that the projector works on
_THUMBNAIL = 40  # pixels; a sprite of `_MAX_POINTS` stays far below the 8192 that browsers take


class RunBoard:
    """Writes `tensorboard/overview/`, which each session of a run begins again."""

    def __init__(self, folder: RunFolder, n_trials: int) -> None:
        """Remove the board of an earlier session: it is out of date.

        Args:
            folder: The run's folder.
            n_trials: Trials that the run is to have: the step of everything on the board.
        """
        self._run = folder
        self._folder = folder.path / "tensorboard" / "overview"
        # An open TensorBoard continues at its place in a file, so each session has its own name.
        self._events = self._folder / f"events.out.tfevents.{time.time_ns()}"
        self._step = n_trials
        shutil.rmtree(self._folder, ignore_errors=True)

    def describe(self, settings: Settings, space: Space) -> None:
        """Write the run's configuration, environment and space as text, and HParams' columns."""
        self._write(text_pb("configuration", _table(_flat(asdict(settings)))))
        self._write(text_pb("environment", _table(_flat(self._run.environment.as_dict()))))
        source = (self._run.path / "space.py").read_text(encoding="utf-8", errors="replace")
        self._write(text_pb("space", "".join(f"    {line}\n" for line in source.splitlines())))
        self._write(experiment_summary(space))  # here, as a run of its own would have no curve

    def show_augmentation(self, images: ImageRows, labels: np.ndarray, space: Space) -> None:
        """Show augmented samples of a few images at three strengths, up to the space's strongest.

        Args:
            images: The training images.
            labels: int64 [n], their classes.
            space: What is searched.
        """
        chosen = images[torch.from_numpy(stratified_rows(labels, _N_AUGMENTED))]
        strongest = space.max_augment or 1.0
        for fraction in (1 / 3, 2 / 3, 1.0):
            strength = fraction * strongest
            tiles = augmented_tiles(chosen, strength, space.image_size, space.flip)
            sheet = as_jpeg(draw_grid(tiles, 1 + N_DRAWS))
            with write_atomically(self._run.path / AUGMENTATION) as partial:
                partial.write_bytes(sheet)  # the strongest one stays, for the report
            self._write_image(
                f"augmentation/strength_{strength:.2f}",
                sheet,
                f"An image, and samples of it with `augment` {strength:.2f}.",
            )

    def show_model(
        self,
        model: Model,
        test: Predictions,
        out_of_fold: Predictions,
        external: Predictions | None,
    ) -> None:
        """Show confusion matrices, top losses, precision-recall curves and features."""
        self._show_predictions("test", test)
        self._show_predictions("out_of_fold", out_of_fold)
        if external is not None:
            self._show_predictions("external", external)
            self._write_image(
                "predictions/external",
                as_jpeg(draw_grid(predicted_tiles(external), _COLUMNS)),
                "Top-3 predictions: wrong ones first, then the least confident. Green is correct,"
                " red is wrong, gray has no label.",
            )
        self._write_features(model, test)

    def _show_predictions(self, part: str, predictions: Predictions) -> None:
        """Show the confusion matrix, top losses and curves of the labelled images."""
        known = predictions.labels >= 0
        if not known.any():
            return
        classes = predictions.classes
        labels, probabilities = predictions.labels[known], predictions.probabilities[known]
        predicted = probabilities.argmax(1)
        self._write_image(f"confusion/{part}", _draw_confusion(labels, predicted, classes, part))
        self._write_image(
            f"top_losses/{part}",
            as_jpeg(draw_grid(top_loss_tiles(predictions), _COLUMNS)),
            f"{count(int((predicted != labels).sum()), 'wrong prediction')} of"
            f" {count(len(labels), 'image')}, in red, the most confident first; then, in green,"
            " the least confident correct predictions.",
        )
        for index in np.unique(labels)[:_MAX_CURVES]:
            scores = probabilities[:, index].astype(np.float64)
            self._write(pr_curve(f"pr/{part}/{classes[index]}", labels == index, scores))

    def _write_features(self, model: Model, test: Predictions) -> None:
        """Write features of test images for the projector, as a cloud of thumbnails.

        Nothing may follow: the writer begins a new event file, after which TensorBoard does not
        read on in the first one.
        """
        from torch.utils.tensorboard import SummaryWriter

        rows = stratified_rows(test.labels, _MAX_POINTS)
        classes = test.classes
        labels, predicted = test.labels[rows], test.probabilities[rows].argmax(1)
        columns = {
            "class": _categories("class", [classes[label] for label in labels]),
            "predicted": _categories("class", [classes[label] for label in predicted]),
            "prediction": ["correct" if same else "wrong" for same in predicted == labels],
            "image": [test.names[row] for row in rows],
        }
        images = test.images(rows)
        thumbnails = np.stack([np.asarray(resize(image, _THUMBNAIL)) for image in images.numpy()])
        with SummaryWriter(self._folder) as writer:
            writer.add_embedding(
                principal_components(pooled_features(model, images)),
                metadata=[
                    [_cell(value) for value in row] for row in zip(*columns.values(), strict=True)
                ],
                metadata_header=list(columns),
                label_img=torch.from_numpy(thumbnails).permute(0, 3, 1, 2) / 255,
                tag="test_features",
            )

    def _write_image(self, tag: str, encoded: bytes, description: str = "") -> None:
        width, height = Image.open(io.BytesIO(encoded)).size
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=encoded
        )
        metadata = SummaryMetadata(summary_description=description)
        self._write(Summary(value=[Summary.Value(tag=tag, image=image, metadata=metadata)]))

    def _write(self, summary: Summary) -> None:
        append_summary(self._events, self._step, summary)


@torch.no_grad()
def pooled_features(model: Model, images: Tensor) -> np.ndarray:
    """Return the features that the head of the model's first member gets.

    Args:
        model: The model.
        images: uint8 [n, S, S, 3].

    Returns:
        float32 [n, size].
    """
    backbone = model.parts[0].classifiers[0].backbone
    device = next(backbone.parameters()).device
    parts = []
    for batch in images.split(inference_batch_size(device, model.card.image_size)):
        pixels = crop_pixels(batch.to(device), model.card.image_size)
        with mixed_precision(device):
            parts.append(backbone(pixels, 0, 5).float().cpu())
    return torch.cat(parts).numpy()


def principal_components(features: np.ndarray) -> np.ndarray:
    """Reduce features to their principal components where they have more dimensions than shown.

    Args:
        features: float32 [n, size], n >= 1.

    Returns:
        float64 [n, at most 64].
    """
    from sklearn.decomposition import PCA  # takes a second

    n_components = min(_MAX_DIMENSIONS, *features.shape)
    if n_components < features.shape[1]:
        features = PCA(n_components, random_state=0).fit_transform(features)
    return features.astype(np.float64).round(4)  # the file is text


def _categories(title: str, values: Sequence[str]) -> list[str]:
    """Return values that the projector colours as categories: numbers alone would be a scale."""
    if all(value.replace(".", "", 1).isdigit() for value in values):
        return [f"{title} {value}" for value in values]
    return list(values)


def _cell(value: str) -> str:
    """Return a value as a cell of the projector's table: one line without tabs, not empty."""
    text = " ".join(value.split()) or "-"
    return text.encode("utf-8", "replace").decode()


def _draw_confusion(
    labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], part: str
) -> bytes:
    """Draw a confusion matrix as PNG."""
    from sklearn.metrics import confusion_matrix

    from search.reporting import style  # Matplotlib takes a while, and is needed last.
    from search.reporting.charts.confusion import (
        MAX_CLASSES,
        draw_confusion,
        most_confused_classes,
    )

    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    shown = most_confused_classes(counts, MAX_CLASSES)
    title = {"test": "Test set", "out_of_fold": "Out-of-fold", "external": "External test set"}
    buffer = io.BytesIO()
    with style.style():
        figure = draw_confusion(
            counts[np.ix_(shown, shown)].tolist(), [classes[i] for i in shown], title[part]
        )
        figure.savefig(buffer, dpi=_CONFUSION_DPI, facecolor="white")
    return buffer.getvalue()


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested dicts, each with its path."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} · ")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
        else:
            yield f"{prefix}{key}", compact(value)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Format rows as a table in Markdown."""
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "| name | value |\n|-|-|\n" + "".join(f"| {row} |\n" for row in cells)
