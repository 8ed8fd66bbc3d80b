"""Images with what a model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import Fold, out_of_fold
from trainables.worker import open_table


@dataclass(frozen=True, eq=False)
class Predictions:
    """Images with what a model says of them.

    Attributes:
        names: Theirs.
        table: uint8 [N, S, S, 3], packed images, these among them.
        rows: int64 [n], where these lie in it.
        labels: int64 [n]; -1 where the class is not known.
        probabilities: float32 [n, classes].
    """

    names: Sequence[str]
    table: Tensor
    rows: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    def images(self, places: np.ndarray) -> Tensor:
        """Return some of the images, given by their places among these: uint8 [m, S, S, 3]."""
        return self.table[torch.from_numpy(self.rows[places])]


def predict_out_of_fold(
    prepared: PreparedData, folds: Sequence[Fold], temperature: float
) -> Predictions:
    """Return the images of all folds, each judged by the training that did not see it."""
    rows, logits = out_of_fold(folds)
    return Predictions(
        names=prepared.names(rows),
        table=open_table(prepared.decoded.table, torch.device("cpu")),
        rows=rows,
        labels=prepared.context.labels[rows],
        probabilities=torch.softmax(torch.from_numpy(logits) / temperature, 1).numpy(),
    )
