from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from search.deployment.server.batching import Batcher


def test_each_caller_gets_the_result_for_its_item():
    async def ask() -> list[int]:
        batcher = Batcher[int, int](lambda items: [item * item for item in items], max_batch_size=4)
        return await asyncio.gather(*(batcher.submit(i) for i in range(50)))

    assert asyncio.run(ask()) == [i * i for i in range(50)]


def test_items_that_arrive_during_a_batch_form_the_next_one():
    sizes: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        started.set()
        assert go_on.wait(10)
        return items

    async def ask() -> None:
        batcher = Batcher[int, int](compute, max_batch_size=8)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(started.wait, 10)
        others = [asyncio.create_task(batcher.submit(i)) for i in range(1, 12)]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *others)

    asyncio.run(ask())
    assert sizes == [1, 8, 3]


def test_an_error_reaches_the_callers_of_its_batch_only():
    def compute(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise ValueError("one")
        return items

    async def ask() -> list[int | BaseException]:
        batcher = Batcher[int, int](compute, max_batch_size=1)
        return await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert (first, third) == (0, 2)
    assert isinstance(second, ValueError)


@pytest.mark.parametrize("n_results", [0, 2, 4])
def test_a_wrong_number_of_results_is_an_error_for_every_caller(n_results):
    async def ask() -> list[int | BaseException]:
        batcher = Batcher[int, int](lambda items: [0] * n_results, max_batch_size=8)
        waiting = asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
        return await asyncio.wait_for(waiting, timeout=10)

    errors = asyncio.run(ask())
    assert [str(error) for error in errors] == [f"{n_results} results for a batch of 3"] * 3
    assert all(isinstance(error, RuntimeError) for error in errors)


def test_cancelled_items_are_not_computed():
    computed: list[int] = []
    go_on = threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        assert go_on.wait(10)
        computed.extend(items)
        return items

    async def ask() -> None:
        batcher = Batcher[int, int](compute, max_batch_size=8)
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
