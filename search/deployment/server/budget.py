"""An amount that tasks share, such as memory: each takes a part, and gives it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """An amount of which tasks take parts; who comes first is served first."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()  # without it, small parts would pass a large one by for ever
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def taking(self, amount: int) -> AsyncIterator[None]:
        """Take an amount within, once it is free; what exceeds the total takes all of it."""
        amount = min(amount, self._total)
        async with self._turn:
            while self._free < amount:
                self._changed.clear()
                await self._changed.wait()
            self._free -= amount
        try:
            yield
        finally:
            self._free += amount
            self._changed.set()
