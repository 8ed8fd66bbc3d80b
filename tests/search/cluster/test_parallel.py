"""Maps over parts: their order, their processes, and what they read ahead."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from search.cluster.parallel import (
    ParallelMap,
    ray_map,
    serial_map,
    start_workers,
    thread_map,
)

MAPS: tuple[ParallelMap, ...] = (serial_map, thread_map, ray_map)
PARTS = [5, 3, 8, 1, 9, 2, 7, 4, 6, 0]


def scaled(factor: int, part: int) -> int:
    return factor * part


def process_of(_: None, __: int) -> int:
    return os.getpid()


def fail_at(bad: int, part: int) -> int:
    if part == bad:
        raise ValueError(f"part {part} is bad")
    return part


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("parallel_map", MAPS)
def test_results_come_in_the_order_of_the_parts(parallel_map: ParallelMap) -> None:
    assert list(parallel_map(scaled, 3, PARTS)) == [3 * part for part in PARTS]
    assert list(parallel_map(scaled, 3, [])) == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("parallel_map", MAPS)
def test_an_error_of_a_part_is_raised(parallel_map: ParallelMap) -> None:
    results = parallel_map(fail_at, 9, PARTS)
    assert [next(results) for _ in range(4)] == [5, 3, 8, 1]
    with pytest.raises(ValueError, match="part 9 is bad"):
        next(results)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_threads_work_at_once() -> None:
    barrier = threading.Barrier(2, timeout=20)  # breaks unless two parts wait together

    def meet(_: Any, part: int) -> int:
        barrier.wait()
        return part

    assert list(thread_map(meet, None, [0, 1])) == [0, 1]


def test_few_parts_are_done_here_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.remote", None)
    assert set(ray_map(process_of, None, range(7))) == {os.getpid()}


@pytest.mark.usefixtures("ray_session")
def test_many_parts_are_done_by_workers_and_read_little_ahead() -> None:
    n_read = 0

    def parts() -> Iterator[int]:
        nonlocal n_read
        for part in range(40):
            n_read += 1
            yield part

    results = ray_map(process_of, None, parts())
    assert next(results) != os.getpid()
    assert n_read <= 10, "two parts for each of the session's two CPUs, and the first eight"
    assert len(list(results)) == 39


def wait_until_loaded(module: str, _: int) -> bool:
    deadline = time.monotonic() + 60
    while module not in sys.modules and time.monotonic() < deadline:
        time.sleep(0.05)
    return module in sys.modules


@pytest.mark.usefixtures("ray_session")
def test_workers_import_a_module_before_they_are_asked_to() -> None:
    module = "xml.sax.saxutils"  # which nothing here needs
    start_workers(module)
    assert all(ray_map(wait_until_loaded, module, range(10)))
