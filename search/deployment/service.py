"""The model behind the server: decodes in threads, predicts in batches, computes heat maps."""

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
from trainables.image_formats import HEAD_BYTES, is_heic
from trainables.images import ImageError, as_tensor
from trainables.models.grad_cam import GradCamError, grad_cam

_MAX_SCANS = 100
_SCAN = b"\xff\xda"


class Service:
    """Predicts image files for many requests in parallel."""

    def __init__(self, predictor: Predictor, max_pixels: int, batch_size: int) -> None:
        """Start the threads that decode and predict.

        Args:
            predictor: The model.
            max_pixels: Pixels of an image, at most; holds for every image that this process
                decodes from now on.
            batch_size: Images predicted in one batch, at most.
        """
        self._predictor = predictor
        self.card = predictor.model.card
        # Pillow refuses twice this number before it decodes, also for an image inside a file.
        Image.MAX_IMAGE_PIXELS = max_pixels // 2
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._batcher = Batcher(self._predict, batch_size)

    async def decode(self, file: IO[bytes]) -> np.ndarray:
        """Read and decode an image file: uint8 [S, S, 3] with S the card's `cache_size`.

        Raises:
            ImageError: it cannot be read, or would take too long.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, file)

    async def predict(self, decoded: np.ndarray) -> Prediction:
        """Predict a decoded image: all classes, the most probable first."""
        return await self._batcher.submit(decoded)

    async def grad_cam(self, decoded: np.ndarray, name: str) -> np.ndarray | None:
        """Compute the Grad-CAM heat map of a class.

        Returns:
            float32 [h, w] in [0, 1]; None where the backbone has no feature map.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._grad_cam, decoded, name)

    def _decode(self, file: IO[bytes]) -> np.ndarray:
        content = file.read()
        # Within a scan no byte pair is a marker. Thousands of scans of a few kilobytes keep a
        # decoder busy for minutes; cameras and programs write up to a dozen.
        if content.startswith(b"\xff\xd8") and content.count(_SCAN) > _MAX_SCANS:
            raise ImageError("the image", f"has more than {_MAX_SCANS} scans")
        # libheif is a large body of C++ code, which files of unknown senders should not reach.
        if is_heic(content[:HEAD_BYTES]):
            raise ImageError("the image", "is a HEIC photo, and none is read here: send a JPEG")
        return self._predictor.decode(io.BytesIO(content))

    def _predict(self, decoded: Sequence[np.ndarray]) -> list[Prediction]:
        names = [""] * len(decoded)
        return self._predictor.predict_decoded(names, decoded, top=len(self.card.classes))

    def _grad_cam(self, decoded: np.ndarray, name: str) -> np.ndarray | None:
        target = self.card.classes.index(name)
        try:
            (heat_map,) = grad_cam(self._predictor.model, as_tensor(decoded[None]), [target])
        except GradCamError:
            return None
        return np.asarray(heat_map)
