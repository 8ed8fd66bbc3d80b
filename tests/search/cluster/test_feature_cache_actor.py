"""The actor that owns view banks, looked at without its tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from search.cluster import feature_cache_actor
from search.cluster.feature_cache_actor import (
    FeatureCacheActor,
    FeatureCachePlan,
    start_feature_cache,
)

SIZES = {"small": (600, 250, 90, 50, 10), "large": (6000, 2500, 900, 500, 100)}


def plan(budget_bytes: int) -> FeatureCachePlan:
    rows = np.array([1, 2, 4, 7, 8])
    return FeatureCachePlan(None, 0, rows, 2, SIZES, budget_bytes, 0.0)


class Submitted:
    """Stands in for the task: its results are their own descriptions."""

    def __init__(self, log: list[dict[str, Any]], options: dict[str, Any]) -> None:
        self._log, self._options = log, options

    def remote(self, context: None, backbone: str, rows: Any, view: int, *rest: Any) -> list[str]:
        _, stage_outputs, seed, after = rest
        self._log.append({**self._options, "view": view, "seed": seed, "after": after})
        made = [f"{backbone}/{stage_output}/view{view}/{rows[0]}" for stage_output in stage_outputs]
        return [*made, f"done {len(self._log)}"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was submitted, with the options it was submitted with."""
    submitted: list[dict[str, Any]] = []

    class Task:
        def options(self, **options: Any) -> Submitted:
            return Submitted(submitted, options)

    monkeypatch.setattr(feature_cache_actor, "_build_block", Task())
    monkeypatch.setattr(feature_cache_actor.ray, "put", lambda value: value)
    monkeypatch.setattr(feature_cache_actor, "_MIN_BLOCK_IMAGES", 3)
    return submitted


@pytest.mark.parametrize(
    ("budget", "small", "large"),
    [
        (20_000, (1, 2, 3, 4, 5), (1, 2, 3, 4, 5)),
        (1_600, (1, 2, 3, 4, 5), (4, 5)),
        (109, (4, 5), ()),
        (9, (), ()),
    ],
)
def test_the_deepest_boundaries_are_built_first(
    budget: int, small: tuple[int, ...], large: tuple[int, ...]
) -> None:
    chosen = plan(budget).first_stage_outputs((1, 2, 3, 4, 5))
    assert chosen == {"small": small, "large": large}
    sizes = [SIZES[name][stage_output - 1] for name in chosen for stage_output in chosen[name]]
    assert sum(sizes) <= budget


def test_of_two_boundaries_of_a_size_the_deeper_is_built_first() -> None:
    sizes = {"squeezenet1_0": (100, 60, 100, 30, 1)}
    chosen = replace(plan(191), sizes=sizes).first_stage_outputs((1, 2, 3, 4, 5))
    assert chosen == {"squeezenet1_0": (2, 3, 4, 5)}


def test_only_depths_of_the_space_are_built_first() -> None:
    assert plan(20_000).first_stage_outputs((2, 4)) == {"small": (2, 4), "large": (2, 4)}


def test_a_view_is_built_once_for_all_its_boundaries(log: list[dict[str, Any]]) -> None:
    owner = FeatureCacheActor(plan(20_000))
    first = owner.build("small", (4, 5), 1)
    assert first == ["small/4/view0/1", "small/4/view0/7"]
    assert owner.build("small", (4, 5), 1) == []
    owner.build("small", (4, 5), 2)
    assert [entry["view"] for entry in log] == [0, 0, 1, 1]
    assert {entry["num_cpus"] for entry in log} == {1}
    assert len({entry["seed"] for entry in log}) == 4
    views, row_of, block_size = owner.get_views("small", 5, 2)
    assert views == [
        ["small/5/view0/1", "small/5/view0/7"],
        ["small/5/view1/1", "small/5/view1/7"],
    ]
    assert block_size == 3
    assert row_of.tolist() == [-1, 0, 1, -1, 2, -1, -1, 3, 4]
    assert len(log) == 4


def test_a_bank_is_built_when_asked_for_the_second_time(log: list[dict[str, Any]]) -> None:
    owner = FeatureCacheActor(plan(20_000))
    assert owner.get_views("small", 3, 1) is None
    assert log == []
    assert owner.get_views("small", 3, 1) is not None
    # They hold no CPU, and wait for each other.
    assert [entry["num_cpus"] for entry in log] == [0, 0]
    assert [entry["after"] for entry in log] == [None, "done 1"]
    lent = owner.get_views("small", 3, 2)
    assert lent is not None
    assert len(lent[0]) == 2
    assert log[2]["after"] == "done 2"


def test_what_exceeds_half_the_budget_is_never_built(log: list[dict[str, Any]]) -> None:
    owner = FeatureCacheActor(plan(1_000))
    assert [owner.get_views("small", 1, 1) for _ in range(3)] == [None] * 3
    assert log == []


def test_the_least_recently_used_makes_room(log: list[dict[str, Any]]) -> None:
    owner = FeatureCacheActor(plan(600))
    owner.build("small", (2,), 2)
    owner.build("small", (3,), 2)
    owner.build("large", (5,), 2)
    assert owner.get_views("small", 2, 2) is not None  # used: small/3 is now the oldest
    owner.get_views("small", 4, 2)
    assert set(owner.sizes_bytes()) == {"small/2", "small/3", "large/5"}
    owner._plan = plan(480)
    owner.get_views("small", 4, 2)
    assert set(owner.sizes_bytes()) == {"small/2", "large/5", "small/4"}
    assert sum(owner.sizes_bytes().values()) == 250 + 100 + 50


def test_a_shallow_bank_never_makes_a_deeper_one_go(log: list[dict[str, Any]]) -> None:
    owner = FeatureCacheActor(plan(620))
    owner.build("small", (3,), 2)
    owner.build("large", (4,), 2)
    held = set(owner.sizes_bytes())
    n_tasks = len(log)
    assert [owner.get_views("small", 2, 1) for _ in range(3)] == [None] * 3
    assert set(owner.sizes_bytes()) == held
    assert len(log) == n_tasks


def test_what_is_lost_with_a_machine_is_built_again_without_a_cpu(
    log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"small/5/view0/1", "small/5/view1/1", "small/5/view1/7"}

    def wait(blocks: list[str], **_: object) -> tuple[list[str], list[str]]:
        ready = [block for block in blocks if block in there]
        return ready, [block for block in blocks if block not in there]

    monkeypatch.setattr(feature_cache_actor.ray, "wait", wait)
    owner = FeatureCacheActor(plan(10_000))
    owner.build("small", (5,), 2)
    owner.get_views("small", 5, 2)
    assert len(log) == 4, "what is on its way is not lost"
    owner.built()
    owner.get_views("small", 5, 1)
    (again,) = log[4:]
    assert (again["num_cpus"], again["view"], again["seed"]) == (0, 0, log[1]["seed"])
    owner.get_views("small", 5, 2)
    assert len(log) == 5, "nor is what is being built again"


def test_an_actor_that_crashed_is_back_also_with_many_images(
    ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    actor = start_feature_cache(
        FeatureCachePlan(ray.put(None), 0, np.arange(20_000), 2, SIZES, 1, 0.0)
    )
    ray.kill(actor, no_restart=False)
    assert ray.get(actor.sizes_bytes.remote(), timeout=60) == {}
    ray.kill(actor)
    assert "arguments in the object store" not in capfd.readouterr().err
