"""Where a search ends by itself: the linear probe leaves too little to be gained."""

from __future__ import annotations

import math

import pytest

from search.evaluation.mcnemar import ALPHA, p_value
from search.pipeline.trials import nothing_to_gain


@pytest.mark.parametrize(("n_wrong", "expected"), [(0, True), (4, True), (5, False), (60, False)])
def test_nothing_can_be_gained_where_a_perfect_model_is_not_told_from_the_probe(
    n_wrong: int, expected: bool
) -> None:
    assert nothing_to_gain(1 - n_wrong / 600, 600) is expected
    assert (p_value(0, n_wrong) >= ALPHA) is expected


def test_an_unknown_probe_leaves_all_to_be_gained() -> None:
    assert not nothing_to_gain(math.nan, 600)
