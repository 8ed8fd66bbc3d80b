from itertools import pairwise

import pytest

from search.tuning.ranking import ranking_value


def test_the_loss_decides_between_equal_accuracies_only() -> None:
    one_image = 1 / 1_000_000  # of a million validation images
    best_first = [(0.9 + one_image, 50.0), (0.9, 0.1), (0.9, 0.2), (0.9, 50.0), (0.8, 0.0)]
    values = [ranking_value(accuracy, loss) for accuracy, loss in best_first]
    assert all(better > worse for better, worse in pairwise(values))


@pytest.mark.parametrize("loss", [1e3, 1e9, float("inf")])
def test_a_loss_without_bound_costs_less_than_one_image(loss: float) -> None:
    assert ranking_value(0.9, loss) == pytest.approx(0.9 - 1e-6, abs=1e-12)
