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
from search.evaluation.grad_cam import AttributionError, attribute
from trainables.images import PictureError, as_tensor

_MOST_SCANS = 100
_SCAN = b"\xff\xda"


class Service:
    """Predicts pictures that come as bytes, many requests at a time."""

    def __init__(self, predictor: Predictor, most_pixels: int, batch_size: int) -> None:
        """Make ready.

        Args:
            predictor: The model.
            most_pixels: Of a picture; holds for all that this process decodes from now on.
            batch_size: Pictures of a batch.
        """
        self._predictor = predictor
        self.card = predictor.model.card
        # Pillow refuses twice this number, wherever in a file it stands, before it decodes.
        Image.MAX_IMAGE_PIXELS = most_pixels // 2
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._batcher = Batcher(self._compute, batch_size)

    async def decode(self, file: IO[bytes]) -> np.ndarray:
        """Read and decode a picture file: uint8 [S, S, 3] with S the card's `packed_size`.

        Raises:
            PictureError: it cannot be read, or would take too long.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, file)

    async def predict(self, packed: np.ndarray) -> Prediction:
        """Predict a decoded picture: all classes, the likeliest first."""
        return await self._batcher.submit(packed)

    async def attribute(self, packed: np.ndarray, name: str) -> np.ndarray | None:
        """Tell where a class is seen: float32 [h, w] in [0, 1]; None if the backbone cannot."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._attribute, packed, name)

    def _decode(self, file: IO[bytes]) -> np.ndarray:
        content = file.read()
        # Within a scan no byte pair is a marker. A few kilobytes a scan keep a decoder busy for
        # minutes with thousands of them; cameras and programs write up to a dozen.
        if content.startswith(b"\xff\xd8") and content.count(_SCAN) > _MOST_SCANS:
            raise PictureError("the picture", f"has more than {_MOST_SCANS} scans")
        return self._predictor.pack(io.BytesIO(content))

    def _compute(self, packed: Sequence[np.ndarray]) -> list[Prediction]:
        return self._predictor.predict_packed([""] * len(packed), packed, len(self.card.classes))

    def _attribute(self, packed: np.ndarray, name: str) -> np.ndarray | None:
        picture = as_tensor(packed[None])
        try:
            (found,) = attribute(self._predictor.model, picture, [self.card.classes.index(name)])
        except AttributionError:
            return None
        return np.asarray(found)
