"""The feature cache's actor, called in this process; Ray tasks compute the features of noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

from search.cluster import feature_cache_actor, feature_cache_plan
from search.cluster.feature_cache_actor import FeatureCacheActor
from search.cluster.feature_cache_plan import FeatureCachePlan
from search.cluster.shared_file import StoredObject
from trainables.feature_cache import as_features
from trainables.worker import FeatureContext, build_block

SMALL, LARGE = "tinynet", "cnn"
VIEW_BYTES = {SMALL: (300, 125, 45, 25, 5), LARGE: (3000, 1250, 450, 250, 50)}
"""Not the true sizes: they decide what has room."""
ROWS = np.array([1, 2, 4, 7, 8])
N_VIEWS = 2


@pytest.fixture(scope="module")
def context(ray_session: None) -> FeatureContext:
    table = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    return FeatureContext(StoredObject.put(table), 32, flip=False, weights={}, seed=0)


class LoggedTask:
    """The task with its options, which logs each call."""

    def __init__(self, log: list[dict[str, Any]], task: Any, options: dict[str, Any]) -> None:
        self._log, self._task, self._options = log, task, options

    def options(self, **options: Any) -> LoggedTask:
        return LoggedTask(self._log, self._task.options(**options), options)

    def remote(self, *arguments: Any) -> list[Any]:
        _, _, rows, view, _, _, seed, after = arguments
        made: list[Any] = self._task.remote(*arguments)
        entry = {"view": view, "rows": rows.tolist(), "seed": seed, "after": after}
        self._log.append({**self._options, **entry, "report": made[-1]})
        return made


@pytest.fixture
def log(context: FeatureContext, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The tasks that were submitted, with their options."""
    submitted: list[dict[str, Any]] = []
    task = LoggedTask(submitted, feature_cache_actor.build_block_task, {})
    monkeypatch.setattr(feature_cache_actor, "build_block_task", task)
    monkeypatch.setattr(feature_cache_plan, "MIN_BLOCK_IMAGES", 3)
    return submitted


def actor(context: FeatureContext, budget_bytes: int) -> FeatureCacheActor:
    plan = FeatureCachePlan(
        ray.put(context), 0, ROWS, N_VIEWS, N_VIEWS, VIEW_BYTES, budget_bytes, 0.0
    )
    return FeatureCacheActor(plan)


def test_a_view_is_built_once_for_all_its_stage_outputs(
    context: FeatureContext, log: list[dict[str, Any]]
) -> None:
    cache = actor(context, 20_000)
    assert cache.build(SMALL, (4, 5), 1) == [entry["report"] for entry in log]
    assert len(log) == 2
    assert cache.build(SMALL, (4, 5), 1) == []
    cache.build(SMALL, (4, 5), 2)
    assert [entry["view"] for entry in log] == [0, 0, 1, 1]
    assert {entry["num_cpus"] for entry in log} == {1}
    assert len({entry["seed"] for entry in log}) == 4
    references = cache.get_views(SMALL, 5, 2)
    assert references is not None
    assert references.block_size == 3
    assert ray.get(references.row_of).tolist() == [-1, 0, 1, -1, 2, -1, -1, 3, 4]
    assert len(log) == 4
    for view, blocks in enumerate(references.views):
        for block, part in zip(blocks, (ROWS[:3], ROWS[3:]), strict=True):
            (entry, *_) = (
                one for one in log if one["view"] == view and one["rows"] == part.tolist()
            )
            (expected,) = build_block(context, SMALL, part, view, N_VIEWS, (5,), entry["seed"])
            np.testing.assert_allclose(values(ray.get(block)), values(expected), atol=0.02)


def values(bits: np.ndarray) -> np.ndarray:
    return as_features(bits).float().numpy()


def test_views_are_built_at_the_second_request(
    context: FeatureContext, log: list[dict[str, Any]]
) -> None:
    cache = actor(context, 20_000)
    assert cache.get_views(SMALL, 3, 1) is None
    assert log == []
    assert cache.get_views(SMALL, 3, 1) is not None
    # They hold no CPU, and run one after the other.
    assert [entry["num_cpus"] for entry in log] == [0, 0]
    assert [entry["after"] for entry in log] == [None, log[0]["report"]]
    references = cache.get_views(SMALL, 3, 2)
    assert references is not None
    assert len(references.views) == 2
    assert log[2]["after"] == log[1]["report"]


def test_what_exceeds_half_the_budget_is_never_built(
    context: FeatureContext, log: list[dict[str, Any]]
) -> None:
    cache = actor(context, 1_000)
    assert [cache.get_views(SMALL, 1, 1) for _ in range(3)] == [None] * 3
    assert log == []


def test_while_there_is_room_nothing_is_evicted(
    context: FeatureContext, log: list[dict[str, Any]]
) -> None:
    cache = actor(context, 500)
    cache.build(SMALL, (2, 3), 2)
    cache.build(LARGE, (5,), 2)
    for _ in range(2):
        cache.get_views(SMALL, 4, 2)
    assert set(cache.sizes_bytes()) == {"tinynet/2", "tinynet/3", "cnn/5", "tinynet/4"}


def test_the_least_recently_used_is_evicted(
    context: FeatureContext, log: list[dict[str, Any]]
) -> None:
    cache = actor(context, 480)
    cache.build(SMALL, (2,), 2)
    cache.build(SMALL, (3,), 2)
    cache.build(LARGE, (5,), 2)
    assert cache.get_views(SMALL, 2, 2) is not None  # used: tinynet/3 is now the oldest
    cache.get_views(SMALL, 4, 2)
    assert set(cache.sizes_bytes()) == {"tinynet/2", "tinynet/3", "cnn/5"}
    cache.get_views(SMALL, 4, 2)
    assert set(cache.sizes_bytes()) == {"tinynet/2", "cnn/5", "tinynet/4"}
    assert sum(cache.sizes_bytes().values()) == 250 + 100 + 50


def test_a_shallow_stage_output_never_evicts_a_deeper_one(
    context: FeatureContext, log: list[dict[str, Any]]
) -> None:
    cache = actor(context, 620)
    cache.build(SMALL, (3,), 2)
    cache.build(LARGE, (4,), 2)
    cached = set(cache.sizes_bytes())
    n_tasks = len(log)
    assert [cache.get_views(SMALL, 2, 1) for _ in range(3)] == [None] * 3
    assert set(cache.sizes_bytes()) == cached
    assert len(log) == n_tasks


def test_what_is_lost_with_a_node_is_rebuilt_without_a_cpu(
    context: FeatureContext, log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss itself is played: one block of four is said to be lost."""
    cache = actor(context, 10_000)
    cache.build(SMALL, (5,), 2)
    built = cache.get_views(SMALL, 5, 2)
    assert built is not None
    (there, lost), others = built.views

    def wait(blocks: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        ready = [block for block in blocks if block in (there, *others)]
        return ready, [block for block in blocks if block == lost]

    monkeypatch.setattr(ray, "wait", wait)
    cache.get_views(SMALL, 5, 2)
    assert len(log) == 4, "what is being built is not lost"
    assert cache.n_lost_blocks() == 0
    cache.end_initial_build()
    rebuilt = cache.get_views(SMALL, 5, 1)
    (again,) = log[4:]
    assert (again["num_cpus"], again["view"], again["seed"]) == (0, 0, log[1]["seed"])
    assert rebuilt is not None
    (new,) = (block for block in rebuilt.views[0] if block != there)
    np.testing.assert_allclose(values(ray.get(new)), values(ray.get(lost)), atol=0.02)
    cache.get_views(SMALL, 5, 2)
    assert len(log) == 5, "nor is what is being rebuilt"
    assert cache.n_lost_blocks() == 1
