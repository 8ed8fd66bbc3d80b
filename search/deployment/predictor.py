"""A finished run's model, ready to look at pictures."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from search.console.arguments import model_path
from trainables.images import PictureError, PictureFile, read_picture
from trainables.models.ensemble import Ensemble, load_model, mean_probabilities

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a picture is thought to be.

    Attributes:
        name: The picture's path as it was given.
        classes: The likeliest classes, best first.
        probabilities: Theirs, calibrated by the model's temperature.
        doubt: How unlike the training pictures it is: 0 is an ordinary one of them, and 95 of 100
            do not exceed 1. None where the model cannot tell.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    doubt: float | None = None

    @property
    def unlike(self) -> bool:
        """Whether it is known not to be like the training pictures."""
        return self.doubt is not None and self.doubt > 1


class Predictor:
    """A model, ready to look at pictures; on a GPU where there is one."""

    def __init__(self, model: Ensemble) -> None:
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, paths: Iterable[str | Path], top: int = 3) -> list[Prediction]:
        """Predict pictures.

        Args:
            paths: Files.
            top: How many classes to name for each.

        Raises:
            PictureError: one cannot be read.
        """
        found = []
        for made in self.predict_each(paths, top):
            if isinstance(made, PictureError):
                raise made
            found.append(made)
        return found

    def predict_each(
        self, paths: Iterable[str | Path], top: int = 3
    ) -> Iterator[Prediction | PictureError]:
        """Predict pictures one batch after the other, in their order.

        The next batch is decoded while one is computed.

        Yields:
            A prediction, or why a picture cannot be read.
        """
        n_threads = os.cpu_count() or 1
        with ThreadPoolExecutor(n_threads, "decode") as decoders:
            waiting: deque[tuple[tuple[str | Path, ...], list[Future[np.ndarray]]]] = deque()
            remaining = iter(paths)
            while batch := tuple(islice(remaining, _BATCH)):
                waiting.append((batch, [decoders.submit(self.pack, path) for path in batch]))
                if len(waiting) > 1:
                    yield from self._predict_decoded(*waiting.popleft(), top)
            while waiting:
                yield from self._predict_decoded(*waiting.popleft(), top)

    def pack(self, picture: PictureFile) -> np.ndarray:
        """Decode a picture: uint8 [S, S, 3] with S the card's `packed_size`.

        Raises:
            PictureError: it cannot be read.
        """
        return self.model.card.fit(read_picture(picture))

    def predict_packed(
        self, names: Sequence[str], packed: Sequence[np.ndarray], top: int
    ) -> list[Prediction]:
        """Predict decoded pictures.

        Args:
            names: Of the pictures.
            packed: As `pack` returns them, at least one.
            top: How many classes to name for each.
        """
        classes = self.model.card.classes
        logits, doubt = self.model.examine(torch.from_numpy(np.stack(packed)))
        rows = mean_probabilities(logits, self.model.card.temperature)
        doubts: list[float | None] = [None] * len(names) if doubt is None else doubt.tolist()
        likeliest = rows.topk(min(top, len(classes)), dim=1)
        return [
            Prediction(name, tuple(classes[i] for i in indices), tuple(values), doubted)
            for name, indices, values, doubted in zip(
                names, likeliest.indices.tolist(), likeliest.values.tolist(), doubts, strict=True
            )
        ]

    def _predict_decoded(
        self, paths: Sequence[str | Path], decoded: Sequence[Future[np.ndarray]], top: int
    ) -> Iterator[Prediction | PictureError]:
        """Predict a batch, leaving out what could not be decoded."""
        results: list[np.ndarray | PictureError] = []
        for future in decoded:
            try:
                results.append(future.result())
            except PictureError as error:
                results.append(error)
        packed = [result for result in results if isinstance(result, np.ndarray)]
        names = [str(p) for p, r in zip(paths, results, strict=True) if isinstance(r, np.ndarray)]
        made = iter(self.predict_packed(names, packed, top) if packed else ())
        for result in results:
            yield result if isinstance(result, PictureError) else next(made)


def load(run: str | Path) -> Predictor:
    """Load a run's model: from its folder, or from a `model.pt` alone.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    return Predictor(load_model(model_path(Path(run))))
