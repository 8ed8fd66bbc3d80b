import numpy as np
import pytest

from search.evaluation.comparison import compare_models
from search.evaluation.mcnemar import detectable_difference, difference_interval


def predictions(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, ...]:
    """Return labels and two models' predictions, given how many images each predicts correctly."""
    a = [0] * both + [0] * first + [1] * second + [1] * neither
    b = [0] * both + [1] * first + [0] * second + [1] * neither
    return np.zeros(len(a), np.int64), np.array(a), np.array(b)


def test_a_gain_beyond_chance() -> None:
    result = compare_models(*predictions(both=80, first=12, second=2, neither=6))
    assert (result.n, result.n_model_only_correct, result.n_baseline_only_correct) == (100, 12, 2)
    assert (result.accuracy, result.baseline_accuracy) == (0.92, 0.82)
    assert result.difference == pytest.approx(0.10)
    assert result.p_value == pytest.approx(121 / 2**14)  # P(X < 2) + P(X <= 2), X ~ B(14, 1/2)
    assert result.verdict == "better beyond chance"
    low, high = result.difference_ci95
    assert 0 < low < 0.05
    assert 0.15 < high < 0.2


def test_a_loss_beyond_chance() -> None:
    result = compare_models(*predictions(both=80, first=2, second=12, neither=6))
    assert result.verdict == "worse beyond chance"
    assert result.difference_ci95[1] < 0


def test_a_few_images_may_differ_by_chance() -> None:
    result = compare_models(*predictions(both=190, first=4, second=1, neither=3))
    assert result.p_value == pytest.approx(7 / 32)  # P(X < 1) + P(X <= 1), X ~ B(5, 1/2)
    assert result.verdict == "no difference beyond chance"
    low, high = result.difference_ci95
    assert low < 0 < high


def test_equal_predictions_do_not_differ() -> None:
    result = compare_models(*predictions(both=50, first=0, second=0, neither=2))
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.verdict == "both predict the same images correctly"
    low, high = result.difference_ci95
    assert -0.06 < low < 0 < high < 0.06


def test_the_expected_discordance_gives_the_detectable_difference() -> None:
    compared = predictions(both=80, first=12, second=2, neither=6)
    known = compare_models(*compared, expected_discordance=0.1)
    assert known.expected_discordance == 0.1
    assert known.detectable_difference == detectable_difference(100, 0.1)
    unknown = compare_models(*compared)
    assert (unknown.expected_discordance, unknown.detectable_difference) == (None, None)


def test_the_interval_covers_the_truth() -> None:
    """In 95 of 100 experiments; benchmarks/models/intervals.py has the whole table."""
    rng = np.random.default_rng(0)
    for n, fractions in ((198, (0.97, 0.015, 0.005, 0.01)), (33, (0.8, 0.1, 0.03, 0.07))):
        drawn = rng.multinomial(n, fractions, size=20_000)
        pairs, times = np.unique(drawn[:, 1:3], axis=0, return_counts=True)
        low, high = np.array([difference_interval(b, c, n) for b, c in pairs.tolist()]).T
        truth = fractions[1] - fractions[2]
        covered = times[(low <= truth) & (truth <= high)].sum() / times.sum()
        assert 0.93 <= covered <= 0.97
