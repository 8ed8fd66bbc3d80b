"""Choosing what is cached before the first trial."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from search.cluster.feature_cache_plan import MAX_BLOCKS, MIN_BLOCK_IMAGES, FeatureCachePlan

SIZES = {"small": (600, 250, 90, 50, 10), "large": (6000, 2500, 900, 500, 100)}


def plan(budget_bytes: int) -> FeatureCachePlan:
    return FeatureCachePlan(None, 0, np.array([1, 2, 4, 7, 8]), 2, SIZES, budget_bytes, 0.0)


@pytest.mark.parametrize(
    ("budget", "small", "large"),
    [
        (20_000, (1, 2, 3, 4, 5), (1, 2, 3, 4, 5)),
        (1_600, (1, 2, 3, 4, 5), (4, 5)),
        (109, (4, 5), ()),
        (9, (), ()),
    ],
)
def test_the_deepest_stage_outputs_are_chosen_first(
    budget: int, small: tuple[int, ...], large: tuple[int, ...]
) -> None:
    chosen = plan(budget).choose_stage_outputs((1, 2, 3, 4, 5))
    assert chosen == {"small": small, "large": large}
    sizes = [SIZES[name][stage_output - 1] for name in chosen for stage_output in chosen[name]]
    assert sum(sizes) <= budget


def test_of_two_stage_outputs_of_a_size_the_deeper_is_chosen_first() -> None:
    sizes = {"squeezenet1_0": (100, 60, 100, 30, 1)}
    chosen = replace(plan(191), sizes=sizes).choose_stage_outputs((1, 2, 3, 4, 5))
    assert chosen == {"squeezenet1_0": (2, 3, 4, 5)}


def test_only_depths_of_the_space_are_chosen() -> None:
    assert plan(20_000).choose_stage_outputs((2, 4)) == {"small": (2, 4), "large": (2, 4)}


@pytest.mark.parametrize("n_images", [5, 1000, 100_000])
def test_blocks_are_neither_small_nor_many(n_images: int) -> None:
    block_size = replace(plan(0), rows=np.arange(n_images)).block_size
    assert block_size >= MIN_BLOCK_IMAGES
    assert -(-n_images // block_size) <= MAX_BLOCKS
