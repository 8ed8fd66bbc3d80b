"""Load a finished run's model and predict images with it."""

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
from search.evaluation.predictions import OOD_THRESHOLD
from search.runs.listing import find_run
from trainables.image_inputs import ImageInput, decode_input, named
from trainables.images import ImageError
from trainables.models.model import Model, load_model, predict

BATCH_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    """The top-k predictions for an image.

    Attributes:
        image: The image's path, as it was given; "image N", counted from 1, where it has none.
        classes: The k most probable classes, the most probable first.
        probabilities: Their probabilities, at the model's temperature.
        ood_score: Out-of-distribution score: at most 1 for 95% of images like the training set,
            0 for the median one. None where the model has no OOD scorer.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    ood_score: float | None = None

    @property
    def is_ood(self) -> bool:
        """Whether the image is out of distribution."""
        return self.ood_score is not None and self.ood_score > OOD_THRESHOLD


class Predictor:
    """Predicts images; on a GPU where there is one."""

    def __init__(self, model: Model, batch_size: int = BATCH_SIZE) -> None:
        """Move a model to its device.

        Args:
            model: The model.
            batch_size: Images that `predict` and `predict_each` compute in one batch.
        """
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size

    def predict(self, images: ImageInput | Iterable[ImageInput], top: int = 3) -> list[Prediction]:
        """Predict images.

        Args:
            images: One image, or any number of them: see `trainables.image_inputs.ImageInput`.
            top: Classes to return for each.

        Raises:
            ImageError: one cannot be read.
        """
        predictions = []
        for result in self.predict_each(images, top):
            if isinstance(result, ImageError):
                raise result
            predictions.append(result)
        return predictions

    def predict_each(
        self, images: ImageInput | Iterable[ImageInput], top: int = 3
    ) -> Iterator[Prediction | ImageError]:
        """Predict images batch by batch, in their order; the next batch is decoded meanwhile.

        Yields:
            A prediction, or the error of an image that cannot be read.
        """
        n_threads = os.cpu_count() or 1
        with ThreadPoolExecutor(n_threads, "decode") as decoders:
            waiting: deque[tuple[list[str], list[Future[np.ndarray]]]] = deque()
            remaining = named(images)
            while batch := list(islice(remaining, self.batch_size)):
                pending = [decoders.submit(self.decode, image, name) for name, image in batch]
                waiting.append(([name for name, _ in batch], pending))
                if len(waiting) > 1:
                    yield from self._predict_batch(*waiting.popleft(), top)
            while waiting:
                yield from self._predict_batch(*waiting.popleft(), top)

    def decode(self, image: ImageInput, name: str = "the image") -> np.ndarray:
        """Decode an image: uint8 [S, S, 3] with S the card's `cache_size`.

        Raises:
            ImageError: it cannot be read; the error calls it `name`.
        """
        card = self.model.card
        return card.to_square(decode_input(image, name, card.levels))

    def predict_decoded(
        self, names: Sequence[str], decoded: Sequence[np.ndarray], top: int
    ) -> list[Prediction]:
        """Predict decoded images.

        Args:
            names: The images' names.
            decoded: The images, as `decode` returns them; at least one.
            top: Classes to return for each.
        """
        classes = self.model.card.classes
        outputs = predict(self.model, torch.from_numpy(np.stack(decoded)))
        highest = outputs.probabilities.topk(min(top, len(classes)), dim=1)
        return [
            Prediction(name, tuple(classes[i] for i in indices), tuple(values), ood_score)
            for name, indices, values, ood_score in zip(
                names,
                highest.indices.tolist(),
                highest.values.tolist(),
                [None] * len(names) if outputs.ood_score is None else outputs.ood_score.tolist(),
                strict=True,
            )
        ]

    def _predict_batch(
        self, names: Sequence[str], pending: Sequence[Future[np.ndarray]], top: int
    ) -> Iterator[Prediction | ImageError]:
        """Predict the images of a batch that can be decoded."""
        results: list[np.ndarray | ImageError] = []
        for future in pending:
            try:
                results.append(future.result())
            except ImageError as error:
                results.append(error)
        decoded = [result for result in results if isinstance(result, np.ndarray)]
        readable = [n for n, r in zip(names, results, strict=True) if isinstance(r, np.ndarray)]
        predictions = iter(self.predict_decoded(readable, decoded, top) if decoded else ())
        for result in results:
            yield result if isinstance(result, ImageError) else next(predictions)


def load(run: str | Path) -> Predictor:
    """Load a run's model, from the run's folder or from its `model.pt` alone.

    Args:
        run: One of them, or "latest": see `search.runs.listing.find_run`.

    Raises:
        ModelError: there is no model, or it is damaged.
        FolderError: there is no finished run that "latest" could name.
    """
    return Predictor(load_model(model_path(find_run(Path(run)))))
