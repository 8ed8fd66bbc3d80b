from __future__ import annotations

import asyncio

from search.deployment.server.budget import Budget


def test_no_more_than_the_total_is_taken_and_who_comes_first_is_served_first() -> None:
    async def share() -> tuple[list[int], int]:
        budget, order, taken, most = Budget(10), [], 0, 0

        async def work(number: int, amount: int) -> None:
            nonlocal taken, most
            async with budget.taking(amount):
                order.append(number)
                taken += min(amount, 10)
                most = max(most, taken)
                await asyncio.sleep(0.01)
                taken -= min(amount, 10)

        amounts = (4, 4, 25, 1, 1, 0, 10)
        await asyncio.gather(*(work(i, amount) for i, amount in enumerate(amounts)))
        return order, most

    order, most = asyncio.run(share())
    assert order == list(range(7)), "a large part is not passed by"
    assert most == 10


def test_what_is_cancelled_gives_its_part_back() -> None:
    async def cancel() -> None:
        budget = Budget(1)

        async def hold() -> None:
            async with budget.taking(1):
                await asyncio.sleep(60)

        first, second = asyncio.create_task(hold()), asyncio.create_task(hold())
        await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        async with asyncio.timeout(5), budget.taking(1):
            pass

    asyncio.run(cancel())
