"""The feature cache's actor, called in this process with a stand-in for its task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search.cluster import feature_cache_actor, feature_cache_plan
from search.cluster.feature_cache_actor import FeatureCacheActor
from search.cluster.feature_cache_plan import FeatureCachePlan

VIEW_BYTES = {"small": (300, 125, 45, 25, 5), "large": (3000, 1250, 450, 250, 50)}


def actor(budget_bytes: int) -> FeatureCacheActor:
    rows = np.array([1, 2, 4, 7, 8])
    return FeatureCacheActor(FeatureCachePlan(None, 0, rows, 2, 2, VIEW_BYTES, budget_bytes, 0.0))


class Task:
    """Stands in for the task with its options: its results are their own descriptions."""

    def __init__(self, log: list[dict[str, Any]], options: dict[str, Any]) -> None:
        self._log, self._options = log, options

    def options(self, **options: Any) -> Task:
        return Task(self._log, options)

    def remote(self, context: None, backbone: str, rows: Any, view: int, *rest: Any) -> list[str]:
        _, stage_outputs, seed, after = rest
        self._log.append({**self._options, "view": view, "seed": seed, "after": after})
        made = [f"{backbone}/{stage_output}/view{view}/{rows[0]}" for stage_output in stage_outputs]
        return [*made, f"report {len(self._log)}"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The tasks that were submitted, with their options."""
    submitted: list[dict[str, Any]] = []
    monkeypatch.setattr(feature_cache_actor, "build_block_task", Task(submitted, {}))
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr(feature_cache_plan, "MIN_BLOCK_IMAGES", 3)
    return submitted


def test_a_view_is_built_once_for_all_its_stage_outputs(log: list[dict[str, Any]]) -> None:
    cache = actor(20_000)
    assert cache.build("small", (4, 5), 1) == ["report 1", "report 2"]
    assert cache.build("small", (4, 5), 1) == []
    cache.build("small", (4, 5), 2)
    assert [entry["view"] for entry in log] == [0, 0, 1, 1]
    assert {entry["num_cpus"] for entry in log} == {1}
    assert len({entry["seed"] for entry in log}) == 4
    references = cache.get_views("small", 5, 2)
    assert references is not None
    assert references.views == [
        ["small/5/view0/1", "small/5/view0/7"],
        ["small/5/view1/1", "small/5/view1/7"],
    ]
    assert references.block_size == 3
    assert references.row_of.tolist() == [-1, 0, 1, -1, 2, -1, -1, 3, 4]
    assert len(log) == 4


def test_views_are_built_at_the_second_request(log: list[dict[str, Any]]) -> None:
    cache = actor(20_000)
    assert cache.get_views("small", 3, 1) is None
    assert log == []
    assert cache.get_views("small", 3, 1) is not None
    # They hold no CPU, and run one after the other.
    assert [entry["num_cpus"] for entry in log] == [0, 0]
    assert [entry["after"] for entry in log] == [None, "report 1"]
    references = cache.get_views("small", 3, 2)
    assert references is not None
    assert len(references.views) == 2
    assert log[2]["after"] == "report 2"


def test_what_exceeds_half_the_budget_is_never_built(log: list[dict[str, Any]]) -> None:
    cache = actor(1_000)
    assert [cache.get_views("small", 1, 1) for _ in range(3)] == [None] * 3
    assert log == []


def test_while_there_is_room_nothing_is_evicted(log: list[dict[str, Any]]) -> None:
    cache = actor(500)
    cache.build("small", (2, 3), 2)
    cache.build("large", (5,), 2)
    for _ in range(2):
        cache.get_views("small", 4, 2)
    assert set(cache.sizes_bytes()) == {"small/2", "small/3", "large/5", "small/4"}


def test_the_least_recently_used_is_evicted(log: list[dict[str, Any]]) -> None:
    cache = actor(480)
    cache.build("small", (2,), 2)
    cache.build("small", (3,), 2)
    cache.build("large", (5,), 2)
    assert cache.get_views("small", 2, 2) is not None  # used: small/3 is now the oldest
    cache.get_views("small", 4, 2)
    assert set(cache.sizes_bytes()) == {"small/2", "small/3", "large/5"}
    cache.get_views("small", 4, 2)
    assert set(cache.sizes_bytes()) == {"small/2", "large/5", "small/4"}
    assert sum(cache.sizes_bytes().values()) == 250 + 100 + 50


def test_a_shallow_stage_output_never_evicts_a_deeper_one(log: list[dict[str, Any]]) -> None:
    cache = actor(620)
    cache.build("small", (3,), 2)
    cache.build("large", (4,), 2)
    cached = set(cache.sizes_bytes())
    n_tasks = len(log)
    assert [cache.get_views("small", 2, 1) for _ in range(3)] == [None] * 3
    assert set(cache.sizes_bytes()) == cached
    assert len(log) == n_tasks


def test_what_is_lost_with_a_node_is_rebuilt_without_a_cpu(
    log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"small/5/view0/1", "small/5/view1/1", "small/5/view1/7"}

    def wait(blocks: list[str], **_: object) -> tuple[list[str], list[str]]:
        ready = [block for block in blocks if block in there]
        return ready, [block for block in blocks if block not in there]

    monkeypatch.setattr("ray.wait", wait)
    cache = actor(10_000)
    cache.build("small", (5,), 2)
    cache.get_views("small", 5, 2)
    assert len(log) == 4, "what is being built is not lost"
    assert cache.n_lost_blocks() == 0
    cache.end_initial_build()
    cache.get_views("small", 5, 1)
    (again,) = log[4:]
    assert (again["num_cpus"], again["view"], again["seed"]) == (0, 0, log[1]["seed"])
    cache.get_views("small", 5, 2)
    assert len(log) == 5, "nor is what is being rebuilt"
    assert cache.n_lost_blocks() == 1
