"""A finished run's model, ready to look at images."""

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
from trainables.images import ImageError, ImageSource, read_image
from trainables.models.ensemble import Ensemble, load_model, mean_probabilities

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What an image is thought to be.

    Attributes:
        name: The image's path as it was given.
        classes: The likeliest classes, best first.
        probabilities: Theirs, calibrated by the model's temperature.
        ood_score: How unlike the training images it is: 0 is an ordinary one of them, and 95 of 100
            do not exceed 1. None where the model cannot tell.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    ood_score: float | None = None

    @property
    def is_ood(self) -> bool:
        """Whether it is known not to be like the training images."""
        return self.ood_score is not None and self.ood_score > 1


class Predictor:
    """A model, ready to look at images; on a GPU where there is one."""

    def __init__(self, model: Ensemble) -> None:
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, paths: Iterable[str | Path], top: int = 3) -> list[Prediction]:
        """Predict images.

        Args:
            paths: Files.
            top: How many classes to name for each.

        Raises:
            ImageError: one cannot be read.
        """
        found = []
        for made in self.predict_each(paths, top):
            if isinstance(made, ImageError):
                raise made
            found.append(made)
        return found

    def predict_each(
        self, paths: Iterable[str | Path], top: int = 3
    ) -> Iterator[Prediction | ImageError]:
        """Predict images one batch after the other, in their order.

        The next batch is decoded while one is computed.

        Yields:
            A prediction, or why an image cannot be read.
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

    def pack(self, image: ImageSource) -> np.ndarray:
        """Decode an image: uint8 [S, S, 3] with S the card's `cache_size`.

        Raises:
            ImageError: it cannot be read.
        """
        return self.model.card.to_square(read_image(image))

    def predict_packed(
        self, names: Sequence[str], decoded: Sequence[np.ndarray], top: int
    ) -> list[Prediction]:
        """Predict decoded images.

        Args:
            names: Of the images.
            decoded: As `pack` returns them, at least one.
            top: How many classes to name for each.
        """
        classes = self.model.card.classes
        logits, ood_score = self.model.predict_with_ood(torch.from_numpy(np.stack(decoded)))
        rows = mean_probabilities(logits, self.model.card.temperature)
        ood_scores: list[float | None] = (
            [None] * len(names) if ood_score is None else ood_score.tolist()
        )
        likeliest = rows.topk(min(top, len(classes)), dim=1)
        return [
            Prediction(name, tuple(classes[i] for i in indices), tuple(values), doubted)
            for name, indices, values, doubted in zip(
                names,
                likeliest.indices.tolist(),
                likeliest.values.tolist(),
                ood_scores,
                strict=True,
            )
        ]

    def _predict_decoded(
        self, paths: Sequence[str | Path], pending: Sequence[Future[np.ndarray]], top: int
    ) -> Iterator[Prediction | ImageError]:
        """Predict a batch, leaving out what could not be decoded."""
        results: list[np.ndarray | ImageError] = []
        for future in pending:
            try:
                results.append(future.result())
            except ImageError as error:
                results.append(error)
        decoded = [result for result in results if isinstance(result, np.ndarray)]
        names = [str(p) for p, r in zip(paths, results, strict=True) if isinstance(r, np.ndarray)]
        made = iter(self.predict_packed(names, decoded, top) if decoded else ())
        for result in results:
            yield result if isinstance(result, ImageError) else next(made)


def load(run: str | Path) -> Predictor:
    """Load a run's model: from its folder, or from a `model.pt` alone.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    return Predictor(load_model(model_path(Path(run))))
