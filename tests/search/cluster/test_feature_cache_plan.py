"""Choosing what is cached before the first trial."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from search.cluster.feature_cache_plan import MAX_BLOCKS, MIN_BLOCK_IMAGES, FeatureCachePlan

VIEW_BYTES = {"small": (300, 125, 45, 25, 5), "large": (3000, 1250, 450, 250, 50)}


def plan(budget_bytes: int) -> FeatureCachePlan:
    """Plan eight views, of which trainings draw two."""
    rows = np.array([1, 2, 4, 7, 8])
    return FeatureCachePlan(None, 0, rows, 8, 2, VIEW_BYTES, budget_bytes, 0.0)


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
    chosen = plan(budget).choose_stage_outputs(("small", "large"), (1, 2, 3, 4, 5))
    assert chosen == {"small": small, "large": large}
    sizes = [2 * VIEW_BYTES[name][output - 1] for name in chosen for output in chosen[name]]
    assert sum(sizes) <= budget


def test_views_that_no_training_draws_take_no_memory() -> None:
    few, many = (replace(plan(380), n_drawn=n) for n in (1, 8))
    assert (few.size("small", 5), many.size("small", 5)) == (5, 40)
    assert few.choose_stage_outputs(("small", "large"), (3, 4, 5)) == {
        "small": (3, 4, 5),
        "large": (4, 5),
    }
    assert many.choose_stage_outputs(("small", "large"), (3, 4, 5)) == {
        "small": (4, 5),
        "large": (),
    }


def test_of_two_stage_outputs_of_a_size_the_deeper_is_chosen_first() -> None:
    view_bytes = {"squeezenet1_0": (50, 30, 50, 15, 1)}
    chosen = replace(plan(192), view_bytes=view_bytes).choose_stage_outputs(
        list(view_bytes), (1, 2, 3, 4, 5)
    )
    assert chosen == {"squeezenet1_0": (2, 3, 4, 5)}


def test_only_depths_of_the_space_are_chosen() -> None:
    assert plan(20_000).choose_stage_outputs(("small", "large"), (2, 4)) == {
        "small": (2, 4),
        "large": (2, 4),
    }


@pytest.mark.parametrize("n_images", [5, 1000, 100_000])
def test_blocks_are_neither_small_nor_many(n_images: int) -> None:
    block_size = replace(plan(0), rows=np.arange(n_images)).block_size
    assert block_size >= MIN_BLOCK_IMAGES
    assert -(-n_images // block_size) <= MAX_BLOCKS
