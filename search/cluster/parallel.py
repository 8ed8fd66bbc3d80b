"""One work on many parts: here, one after the other or by threads, or by tasks on all machines."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

_WORTH_SPREADING = 8
"""Parts; fewer are done before other processes have begun."""


class Spread(Protocol):
    """Does a work on each of some parts."""

    def __call__(
        self, work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]
    ) -> Iterator[Any]:
        """Yield `work(shared, part)` of each part, in their order.

        Args:
            work: A function of a module.
            shared: What all parts need; it is not changed.
            parts: Small.
        """


def one_by_one(work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
    """Do a work here; see `Spread`."""
    return (work(shared, part) for part in parts)


def on_all_cores(
    work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]
) -> Iterator[Any]:
    """Do a work by threads of this process; see `Spread`. NumPy lets them run side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(partial(work, shared), parts)


def on_all_nodes(
    work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]
) -> Iterator[Any]:
    """Do a work by Ray tasks of one CPU each; see `Spread`. A few parts are done here."""
    import ray  # who spreads nothing need not have it

    waiting_parts = list(parts)
    if len(waiting_parts) < _WORTH_SPREADING:
        yield from one_by_one(work, shared, waiting_parts)
        return
    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=5)(work)
    reference = ray.put(shared)
    n_ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    started: deque[Any] = deque()
    for part in waiting_parts:
        started.append(task.remote(reference, part))
        if len(started) > n_ahead:
            yield ray.get(started.popleft())
    while started:
        yield ray.get(started.popleft())
