"""Dynamic batching: items that arrive while one batch is computed form the next batch.

No item waits for a batch to fill. Under low load an item is computed at once and alone; under high
load the batches grow by themselves. (Ray Serve's own decorator closes a batch after a fixed time,
even while the model is still busy with the one before.)
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
    """Computes submitted items in batches, one batch after the other, in a thread."""

    def __init__(
        self, compute: Callable[[Sequence[Item]], Sequence[Result]], max_batch_size: int
    ) -> None:
        """Create a batcher; its thread starts with the first item.

        Args:
            compute: Maps a batch of items to their results, in the same order.
            max_batch_size: Items in a batch, at most.
        """
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._thread = ThreadPoolExecutor(1, "batch")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the result for an item. All calls must come from one event loop.

        Raises:
            Exception: what `compute` raised for the item's batch.
            RuntimeError: `compute` returned another number of results than it got items.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Compute batches until no item waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            n = min(self._max_batch_size, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(n)]
            batch = [(item, future) for item, future in taken if not future.cancelled()]
            if not batch:
                continue
            items = [item for item, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._compute, items)
                if len(results) != len(items):
                    raise RuntimeError(f"{len(results)} results for a batch of {len(items)}")
            except Exception as error:  # every caller of this batch gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
