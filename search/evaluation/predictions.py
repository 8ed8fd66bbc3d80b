"""Predictions of many images, and the CSV tables that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.runs.tables import (
    PROBABILITY,
    ood_cells,
    prediction_columns,
    ranked_cells,
    read_csv,
    read_fraction,
    read_records,
    write_csv,
)
from search.runs.validation import FolderError

if TYPE_CHECKING:
    from torch import Tensor

TOP_K = 3
"""Predictions that are listed for each image."""

OOD_THRESHOLD = 1.0
"""Above this score an image is out of distribution: see `trainables.models.ood`."""

_LOW_CONFIDENCE = 0.2
"""Difference between the two highest probabilities below which confidence is low."""


@dataclass(frozen=True)
class PredictedImage:
    """The top-k predictions of one image, as a table of predictions has them.

    Attributes:
        name: The image's.
        label: Its class; None where it is unknown.
        ranked: The most probable classes with their probabilities, at most `TOP_K`.
        is_ood: Whether it is out of distribution; False where the model cannot tell.
    """

    name: str
    label: str | None
    ranked: tuple[tuple[str, float], ...]
    is_ood: bool = False

    @property
    def correct(self) -> bool | None:
        """Whether the first prediction is the label; None where that is unknown."""
        return None if self.label is None else self.ranked[0][0] == self.label

    @property
    def low_confidence(self) -> bool:
        """Whether the second class is nearly as probable as the first."""
        second = self.ranked[1][1] if len(self.ranked) > 1 else 0.0
        return self.ranked[0][1] - second < _LOW_CONFIDENCE


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predicted probabilities of many images.

    Attributes:
        names: Names of the images.
        table: uint8 [N, S, S, 3], decoded images, these among them.
        rows: int64 [n], the rows of these in it.
        labels: int64 [n]; -1 where the class is unknown.
        probabilities: float32 [n, classes].
        classes: Their names.
        ood_score: float [n], above `OOD_THRESHOLD` for images that are out of distribution; None
            where the model cannot tell.
    """

    names: Sequence[str]
    table: Tensor
    rows: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: Sequence[str]
    ood_score: np.ndarray | None = None

    def images(self, places: np.ndarray) -> Tensor:
        """Return some of the images, given by their places among these: uint8 [m, S, S, 3]."""
        return self.table[self.rows[places]]

    @property
    def is_ood(self) -> np.ndarray | None:
        """Whether each image is out of distribution; None where the model cannot tell."""
        return None if self.ood_score is None else self.ood_score > OOD_THRESHOLD

    @property
    def n_ood(self) -> int | None:
        """Number of images that are out of distribution; None as for `is_ood`."""
        return None if self.is_ood is None else int(self.is_ood.sum())

    def top_k(self) -> list[PredictedImage]:
        """Return each image's top-k predictions, exactly as the table holds them."""
        is_ood = np.zeros(len(self.names), bool) if self.is_ood is None else self.is_ood
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :TOP_K]
        return [
            PredictedImage(
                name,
                self.classes[label] if label >= 0 else None,
                tuple((self.classes[i], round(float(row[i]), 6)) for i in top),
                bool(one_is_ood),
            )
            for name, label, row, top, one_is_ood in zip(
                self.names, self.labels, self.probabilities, order, is_ood, strict=True
            )
        ]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a table with one line per image: its label, top-k predictions and probabilities."""
    top = min(TOP_K, len(predictions.classes))
    columns = prediction_columns(top, label=True, classes=predictions.classes)
    n = len(predictions.names)
    scores = [None] * n if predictions.ood_score is None else predictions.ood_score
    rows = [
        [
            one.name,
            one.label,
            *ranked_cells(one.ranked),
            *ood_cells(score, one.is_ood),
            *(f"{p:.6f}" for p in row),
        ]
        for one, row, score in zip(
            predictions.top_k(), predictions.probabilities, scores, strict=True
        )
    ]
    write_csv(path, columns, rows)


def read_predictions(path: Path) -> tuple[PredictedImage, ...]:
    """Read a table of predictions, in its order; nothing where there is none.

    Bytes of a name or a class that are no UTF-8 become replacement marks.

    Raises:
        FolderError: it is damaged.
    """
    return tuple(read_records(path, _read_prediction, errors="replace"))


def _read_prediction(row: dict[str, str]) -> PredictedImage:
    ranked = [(row["prediction_1"], read_fraction(row["probability_1"]))]
    ranked += [
        (row[f"prediction_{k}"], read_fraction(row[f"probability_{k}"]))
        for k in range(2, TOP_K + 1)
        if row.get(f"prediction_{k}")
    ]
    return PredictedImage(row["image"], row["label"] or None, tuple(ranked), row["is_ood"] == "1")


@dataclass(frozen=True, eq=False)
class LabelledProbabilities:
    """What a table of predictions holds of the images whose class is known.

    Attributes:
        classes: Names of the classes.
        labels: int64 [n], in [0, len(classes)).
        probabilities: float64 [n, classes].
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray


def read_probabilities(path: Path) -> LabelledProbabilities:
    """Read the probabilities of all classes for the labelled images; no class without the file.

    Raises:
        FolderError: it is damaged.
    """
    try:
        table = read_csv(path, errors="replace")
        columns = [name for name in table.columns if name.startswith(PROBABILITY)]
        classes = tuple(name.removeprefix(PROBABILITY) for name in columns)
        known = table[table["label"] != ""] if classes else table
        places = {name: place for place, name in enumerate(classes)}
        labels = [places[label] for label in known["label"]] if classes else []
        probabilities = known[columns].to_numpy(np.float64)
    except (KeyError, ValueError, OSError) as error:
        raise FolderError(
            f"{path} is damaged: its probabilities cannot be read ({error}); put a copy of it back"
        ) from None
    return LabelledProbabilities(classes, np.array(labels, np.int64), probabilities)
