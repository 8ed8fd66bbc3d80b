"""What TensorBoard shows of a whole run, besides its trials: text, images, curves, features.

tensorboard --logdir results/<run>/tensorboard
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.text.summary_v2 import text_pb
from torch import Tensor
from torch.utils.tensorboard.summary import pr_curve

from search.console.formatting import compact, count
from search.pipeline.predictions_tmp import Predictions
from search.pipeline.prepare import PreparedData
from search.pipeline.probe import max_augment
from search.reporting.tensorboard.event_file import append_summary
from search.reporting.tensorboard.image_grid import as_jpeg, draw_sheet
from search.reporting.tensorboard.projector import MAX_POINTS, write_projection
from search.reporting.tensorboard.tiles import (
    N_DRAWS,
    augmented_tiles,
    mistake_tiles,
    predicted_tiles,
    spread,
)
from search.runs.run_folder import RunFolder
from trainables.feature_cache import mixed_precision
from trainables.images import crop_and_normalise
from trainables.models.ensemble import Ensemble
from trainables.worker import open_table

_N_AUGMENTED = 6  # images on a sheet of augmentation, a row each
_COLUMNS = 8  # of the other sheets
_MAX_CURVES = 50  # of precision against recall, a class each
_FEATURES_BATCH = 64
_CONFUSION_DPI = 110


class Overview:
    """Writes `tensorboard/overview/`, anew in each session of a run."""

    def __init__(self, folder: RunFolder, n_trials: int) -> None:
        """Begin with an empty board: what an earlier session found is out of date.

        Args:
            folder: Of the run.
            n_trials: That the run is to have, the step at which all is shown.
        """
        self._run = folder
        self._folder = folder.path / "tensorboard" / "overview"
        # A TensorBoard that is open reads on where it was in a file, so each has its own name.
        self._events = self._folder / f"events.out.tfevents.{time.time_ns()}"
        self._step = n_trials
        shutil.rmtree(self._folder, ignore_errors=True)

    def describe(self) -> None:
        """Show, as text, what applies to the run and what it runs on."""
        self._write(text_pb("configuration", _table(_flat(self._run.summary["settings"]))))
        self._write(text_pb("environment", _table(_flat(self._run.environment))))
        space = (self._run.path / "space.py").read_text(encoding="utf-8", errors="replace")
        self._write(text_pb("space", "".join(f"    {line}\n" for line in space.splitlines())))

    def show_augmentation(self, prepared: PreparedData) -> None:
        """Show what training sees of a few images at three strengths, up to the strongest."""
        space, rows = prepared.space, prepared.rows("train")
        rows = rows[spread(prepared.context.labels[rows], _N_AUGMENTED)]
        images = open_table(prepared.decoded.table, torch.device("cpu"))[torch.from_numpy(rows)]
        for share in (1 / 3, 2 / 3, 1.0):
            strength = share * (max_augment(space) or 1.0)
            tiles = augmented_tiles(images, strength, space.image_size, space.flip)
            self._write_image(
                f"augmentation/strength_{strength:.2f}",
                as_jpeg(draw_sheet(tiles, 1 + N_DRAWS)),
                f"An image, and what a trial with `augment` {strength:.2f} may see of it.",
            )

    def show_model(
        self,
        classes: Sequence[str],
        ensemble: Ensemble,
        held_out: Predictions,
        out_of_fold: Predictions,
        external: Predictions | None,
    ) -> None:
        """Show how good the model is, where it is wrong, and how it tells images apart."""
        self._show_judged("held_out", held_out, classes)
        self._show_judged("out_of_fold", out_of_fold, classes)
        if external is not None:
            self._show_judged("external", external, classes)
            self._write_image(
                "predictions/external",
                as_jpeg(draw_sheet(predicted_tiles(external, classes), _COLUMNS)),
                "The likeliest classes: wrong answers first, then the least certain ones. Green is"
                " right, red is wrong, grey is not known.",
            )
        self._write_features(classes, ensemble, held_out)

    def _show_judged(self, part: str, judged: Predictions, classes: Sequence[str]) -> None:
        """Show confusions, mistakes and curves of the images whose class is known."""
        known = judged.labels >= 0
        if not known.any():
            return
        labels, probabilities = judged.labels[known], judged.probabilities[known]
        predicted = probabilities.argmax(1)
        self._write_image(f"confusion/{part}", _draw_confusion(labels, predicted, classes, part))
        self._write_image(
            f"mistakes/{part}",
            as_jpeg(draw_sheet(mistake_tiles(judged, classes), _COLUMNS)),
            f"{count(int((predicted != labels).sum()), 'mistake')} among"
            f" {count(len(labels), 'image')}, in red, the most confident first; then, in green,"
            " the right answers that the model was least sure of.",
        )
        for index in np.unique(labels)[:_MAX_CURVES]:
            scores = probabilities[:, index].astype(np.float64)
            self._write(pr_curve(f"{part}/{classes[index]}", labels == index, scores))

    def _write_features(
        self, classes: Sequence[str], ensemble: Ensemble, held_out: Predictions
    ) -> None:
        rows = spread(held_out.labels, MAX_POINTS)
        images = held_out.images(rows)
        labels, predicted = held_out.labels[rows], held_out.probabilities[rows].argmax(1)
        columns = {
            "class": [classes[label] for label in labels],
            "predicted": [classes[label] for label in predicted],
            "answer": ["right" if same else "wrong" for same in predicted == labels],
            "name": [held_out.names[row] for row in rows],
        }
        features = pooled_features(ensemble, images)
        write_projection(self._folder, "held-out features", features, images.numpy(), columns)

    def _write_image(self, tag: str, encoded: bytes, description: str = "") -> None:
        width, height = Image.open(io.BytesIO(encoded)).size
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=encoded
        )
        told = SummaryMetadata(summary_description=description)
        self._write(Summary(value=[Summary.Value(tag=tag, image=image, metadata=told)]))

    def _write(self, summary: Summary) -> None:
        append_summary(self._events, self._step, summary)


@torch.no_grad()
def pooled_features(ensemble: Ensemble, images: Tensor) -> np.ndarray:
    """Return what the head of the ensemble's first member sees of images.

    Args:
        ensemble: The model.
        images: uint8 [n, S, S, 3].

    Returns:
        float32 [n, size].
    """
    backbone = ensemble.classifiers[0].backbone
    device = next(backbone.parameters()).device
    parts = []
    for batch in images.split(_FEATURES_BATCH):
        pixels = crop_and_normalise(batch.to(device), ensemble.card.image_size)
        with mixed_precision(device):
            parts.append(backbone(pixels, 0, 5).float().cpu())
    return torch.cat(parts).numpy()


def _draw_confusion(
    labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], part: str
) -> bytes:
    """Draw a confusion matrix, as a PNG file's bytes."""
    from search.reporting import style  # Matplotlib takes a while, and is needed last.
    from search.reporting.model_figures import draw_confusion

    counts = confusion_matrix(labels, predicted, labels=range(len(classes))).tolist()
    buffer = io.BytesIO()
    with style.style():
        figure = draw_confusion(counts, classes, part.replace("_", " ").capitalize())
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
    """Return a table in Markdown."""
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "| what | value |\n|-|-|\n" + "".join(f"| {row} |\n" for row in cells)
