"""The model behind the server: decodes in threads, predicts in batches, computes heat maps."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple, Protocol

import numpy as np
from PIL import Image

from search.deployment.predictor import Prediction, Predictor
from search.deployment.server.batching import Batcher
from search.deployment.server.budget import Budget
from trainables.compute import release_memory
from trainables.image_formats import HEAD_BYTES, PILLOW_FORMATS, is_heic
from trainables.images import ImageError, as_tensor
from trainables.models.grad_cam import GradCamError, grad_cam
from trainables.models.model_card import ModelCard

_MAX_SCANS = 100
_SCAN = b"\xff\xda"
_IMAGES_IN_MEMORY = 2
"""Images of the largest size whose pixels may be in memory while they are decoded."""
_LARGE_PIXELS = 8_000_000
"""Pixels of an image after which freed memory is returned, which takes a tenth of its decoding."""


class Answer(NamedTuple):
    """What the model says about an image.

    Attributes:
        prediction: All classes, the most probable first.
        heat_map: Grad-CAM of the first class, float32 [h, w] in [0, 1]; None where it was not asked
            for, or the backbone has no feature map.
        batch_size: Images in the batch that it was predicted in.
    """

    prediction: Prediction
    heat_map: np.ndarray | None
    batch_size: int


class Service(Protocol):
    """Predicts image files for many requests in parallel."""

    @property
    def card(self) -> ModelCard:
        """The model's card."""

    async def answer(self, file: IO[bytes], grad_cam: bool) -> Answer:
        """Predict an image file.

        Raises:
            ImageError: it cannot be read, or would take too long.
        """


class LocalService:
    """Predicts by a model in this process."""

    def __init__(self, predictor: Predictor, max_pixels: int, batch_size: int) -> None:
        """Start the threads that decode and predict.

        Args:
            predictor: The model.
            max_pixels: Pixels of an image, at most; holds for every image that this process
                decodes from now on.
            batch_size: Images predicted in one batch, at most.
        """
        self._predictor = predictor
        # Pillow refuses twice this number before it decodes, also for an image inside a file.
        Image.MAX_IMAGE_PIXELS = max_pixels // 2
        self._pixels = Budget(_IMAGES_IN_MEMORY * max_pixels)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._batcher = Batcher(self._predict, batch_size)

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self._predictor.model.card

    async def answer(self, file: IO[bytes], grad_cam: bool) -> Answer:
        """See `Service`."""
        loop = asyncio.get_running_loop()
        content, n_pixels = await loop.run_in_executor(self._threads, _read, file)
        async with self._pixels.taking(n_pixels):
            decoded = await loop.run_in_executor(self._threads, self._decode, content, n_pixels)
        prediction, batch_size = await self._batcher.submit(decoded)
        heat_map = None
        if grad_cam:
            name = prediction.classes[0]
            heat_map = await loop.run_in_executor(self._threads, self._grad_cam, decoded, name)
        return Answer(prediction, heat_map, batch_size)

    def _decode(self, content: bytes, n_pixels: int) -> np.ndarray:
        """Decode an image file: uint8 [S, S, 3] with S the card's `cache_size`."""
        try:
            return self._predictor.decode(io.BytesIO(content))
        finally:
            if n_pixels > _LARGE_PIXELS:
                release_memory()

    def _predict(self, decoded: Sequence[np.ndarray]) -> list[tuple[Prediction, int]]:
        names = [""] * len(decoded)
        top = len(self.card.classes)
        predictions = self._predictor.predict_decoded(names, decoded, top)
        return [(prediction, len(decoded)) for prediction in predictions]

    def _grad_cam(self, decoded: np.ndarray, name: str) -> np.ndarray | None:
        target = self.card.classes.index(name)
        try:
            (heat_map,) = grad_cam(self._predictor.model, as_tensor(decoded[None]), [target])
        except GradCamError:
            return None
        return np.asarray(heat_map)


def _read(file: IO[bytes]) -> tuple[bytes, int]:
    """Read an image file, and the number of its pixels; 0 where its header cannot be read.

    Raises:
        ImageError: it would take too long to decode, or is of a format that the server reads none
            of.
    """
    content = file.read()
    # Within a scan no byte pair is a marker. Thousands of scans of a few kilobytes keep a decoder
    # busy for minutes; cameras and programs write up to a dozen.
    if content.startswith(b"\xff\xd8") and content.count(_SCAN) > _MAX_SCANS:
        raise ImageError("the image", f"has more than {_MAX_SCANS} scans")
    # libheif is a large body of C++ code, which files of unknown senders should not reach.
    if is_heic(content[:HEAD_BYTES]):
        raise ImageError("the image", "is a HEIC photo, and none is read here: send a JPEG")
    try:
        with Image.open(io.BytesIO(content), formats=PILLOW_FORMATS) as image:
            return content, image.width * image.height
    except Exception:  # decoding says what is wrong
        return content, 0
