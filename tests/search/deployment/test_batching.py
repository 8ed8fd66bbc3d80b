from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from search.deployment.batching import Batcher


def test_results_come_to_those_who_asked():
    async def ask() -> list[int]:
        batcher = Batcher[int, int](lambda items: [item * item for item in items], most=4)
        return await asyncio.gather(*(batcher.submit(i) for i in range(50)))

    assert asyncio.run(ask()) == [i * i for i in range(50)]


def test_what_arrives_meanwhile_is_the_next_batch():
    sizes: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        started.set()
        assert go_on.wait(10)
        return items

    async def ask() -> None:
        batcher = Batcher[int, int](compute, most=8)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(started.wait, 10)
        others = [asyncio.create_task(batcher.submit(i)) for i in range(1, 12)]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *others)

    asyncio.run(ask())
    assert sizes == [1, 8, 3]


def test_an_error_comes_to_its_batch_alone():
    def compute(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise ValueError("one")
        return items

    async def ask() -> list[int | BaseException]:
        batcher = Batcher[int, int](compute, most=1)
        return await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert (first, third) == (0, 2)
    assert isinstance(second, ValueError)


def test_who_has_left_is_not_computed_for():
    computed: list[int] = []
    go_on = threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        assert go_on.wait(10)
        computed.extend(items)
        return items

    async def ask() -> None:
        batcher = Batcher[int, int](compute, most=8)
        tasks = [asyncio.create_task(batcher.submit(0))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    asyncio.run(ask())
    assert computed == [0, 2]
