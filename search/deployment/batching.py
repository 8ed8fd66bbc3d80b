"""Dynamic batching: what arrives while one batch is computed is the next batch.

Nobody waits for a batch to fill: alone, an image goes at once; under load, batches grow by
themselves. (Serve's own decorator closes a batch by the clock, while the model is still busy with
the one before.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Computes items in batches, one batch at a time, in a thread of its own."""

    def __init__(self, compute: Callable[[Sequence[Item]], Sequence[Result]], most: int) -> None:
        """Begin without any thread; the first item starts it.

        Args:
            compute: Items to results, in their order.
            most: Items of a batch.
        """
        self._compute = compute
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._thread = ThreadPoolExecutor(1, "batch")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return what is computed of an item; call it in one event loop alone.

        Raises:
            Exception: what `compute` raised for the item's batch.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Compute batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            drawn = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(item, future) for item, future in drawn if not future.cancelled()]
            if not batch:
                continue
            items = [item for item, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._compute, items)
            except Exception as error:  # whoever asked is told
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
