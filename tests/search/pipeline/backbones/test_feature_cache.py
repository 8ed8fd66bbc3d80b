"""How many views the feature cache needs, and what it holds."""

from __future__ import annotations

import pytest
from optuna.distributions import FloatDistribution

from search.pipeline.backbones.feature_cache import count_drawn_views
from spaces.base import Space
from spaces.rules import Distribution, Value
from spaces.sources import digits


@pytest.mark.parametrize(
    ("augment", "views", "ablation", "count"),
    [
        (FloatDistribution(0.0, 1.0), 8, False, 8),
        (FloatDistribution(0.0, 0.6), 8, False, 7),
        (FloatDistribution(0.0, 0.6), 8, True, 7),
        (0.3, 8, False, 5),
        (0.0, 8, False, 1),
        (0.0, 8, True, 5),  # the ablation's transfer step has a strength of 0.2
        (0.5, 1, True, 1),
    ],
)
def test_only_views_that_a_training_can_draw_are_counted(
    augment: Distribution | float, views: int, ablation: bool, count: int
) -> None:
    params: dict[str, Distribution | Value] = {"backbone": "tinynet", "augment": augment}
    space = Space(digits(), params, views=views, ablation=ablation)
    assert count_drawn_views(space) == count
