"""A model at work for many: decodes in threads, computes in batches, says where it looked."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from PIL import Image

from search.deployment.batching import Batcher
from search.deployment.predictor import Prediction, Predictor
from trainables.images import ImageError, as_tensor
from trainables.models.grad_cam import GradCamError, grad_cam

_MAX_SCANS = 100
_SCAN = b"\xff\xda"


class Service:
    """Predicts images that come as bytes, many requests at a time."""

    def __init__(self, predictor: Predictor, most_pixels: int, batch_size: int) -> None:
        """Make ready.

        Args:
            predictor: The model.
            most_pixels: Of an image; holds for all that this process decodes from now on.
            batch_size: Images of a batch.
        """
        self._predictor = predictor
        self.card = predictor.model.card
        # Pillow refuses twice this number, wherever in a file it stands, before it decodes.
        Image.MAX_IMAGE_PIXELS = most_pixels // 2
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._batcher = Batcher(self._compute, batch_size)

    async def decode(self, file: IO[bytes]) -> np.ndarray:
        """Read and decode an image file: uint8 [S, S, 3] with S the card's `cache_size`.

        Raises:
            ImageError: it cannot be read, or would take too long.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, file)

    async def predict(self, decoded: np.ndarray) -> Prediction:
        """Predict a decoded image: all classes, the likeliest first."""
        return await self._batcher.submit(decoded)

    async def attribute(self, decoded: np.ndarray, name: str) -> np.ndarray | None:
        """Tell where a class is seen: float32 [h, w] in [0, 1]; None if the backbone cannot."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._attribute, decoded, name)

    def _decode(self, file: IO[bytes]) -> np.ndarray:
        content = file.read()
        # Within a scan no byte pair is a marker. A few kilobytes a scan keep a decoder busy for
        # minutes with thousands of them; cameras and programs write up to a dozen.
        if content.startswith(b"\xff\xd8") and content.count(_SCAN) > _MAX_SCANS:
            raise ImageError("the image", f"has more than {_MAX_SCANS} scans")
        return self._predictor.pack(io.BytesIO(content))

    def _compute(self, decoded: Sequence[np.ndarray]) -> list[Prediction]:
        return self._predictor.predict_packed([""] * len(decoded), decoded, len(self.card.classes))

    def _attribute(self, decoded: np.ndarray, name: str) -> np.ndarray | None:
        image = as_tensor(decoded[None])
        try:
            (found,) = grad_cam(self._predictor.model, image, [self.card.classes.index(name)])
        except GradCamError:
            return None
        return np.asarray(found)
