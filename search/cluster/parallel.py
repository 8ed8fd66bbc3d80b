"""Map a function over parts: serially, by threads, or by Ray tasks on all nodes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import chain, islice
from typing import Any, Protocol

_MIN_PARTS_FOR_RAY = 8
"""Fewer parts are done here before Ray's workers would have started."""


class ParallelMap(Protocol):
    """Applies a function to each of some parts."""

    def __call__(
        self, work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]
    ) -> Iterator[Any]:
        """Yield `work(shared, part)` for each part, in the order of the parts.

        Args:
            work: A function of a module, so that it can be pickled.
            shared: First argument of all calls, sent once; it is not changed.
            parts: Second arguments, each sent with its call.
        """


def serial_map(work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
    """Apply a function in this thread; see `ParallelMap`."""
    return (work(shared, part) for part in parts)


def thread_map(work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
    """Apply a function in threads; see `ParallelMap`. NumPy and Pillow release the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(partial(work, shared), parts)


def start_workers(module: str) -> None:
    """Let a worker for each CPU import a module that later tasks need, and wait for none of them.

    What is meant is PyTorch, which takes seconds in each worker, while this process has other work.
    """
    import ray

    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=0)(_import)
    for _ in range(int(ray.cluster_resources().get("CPU", 1))):
        task.remote(module)


def _import(module: str) -> None:
    import_module(module)


def ray_map(work: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
    """Apply a function in Ray tasks of one CPU each, or here to few parts; see `ParallelMap`."""
    import ray  # takes half a second

    remaining = iter(parts)
    first = list(islice(remaining, _MIN_PARTS_FOR_RAY))
    if len(first) < _MIN_PARTS_FOR_RAY:
        yield from serial_map(work, shared, first)
        return
    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=5)(work)
    reference = ray.put(shared)
    n_ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    started: deque[Any] = deque()
    for part in chain(first, remaining):
        started.append(task.remote(reference, part))
        if len(started) > n_ahead:
            yield ray.get(started.popleft())
    while started:
        yield ray.get(started.popleft())
