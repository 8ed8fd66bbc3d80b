from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.evaluation.comparison import compare_models
from search.evaluation.mcnemar import (
    ALPHA,
    POWER,
    detectable_difference,
    difference_distribution,
    difference_interval,
    fewest_wins,
    p_value,
    power,
)
from search.runs.summary import Interval

LARGEST = 100_000


def predictions(first: int, second: int, n: int) -> tuple[np.ndarray, ...]:
    """Return labels and two models' predictions; `first` and `second` images are discordant."""
    a, b = np.zeros(n, np.int64), np.zeros(n, np.int64)
    a[first : first + second] = 1
    b[:first] = 1
    return np.zeros(n, np.int64), a, b


def excludes_0(interval: Interval) -> bool:
    return interval[0] > 0 or interval[1] < 0


def test_the_p_value_is_two_tails_that_count_half_of_the_outcome_itself() -> None:
    for n in range(1, 40):
        for first in range(n + 1):
            tail = (sum(comb(n, k) for k in range(first)) + comb(n, first) / 2) / 2**n
            assert p_value(first, n - first) == pytest.approx(2 * min(tail, 1 - tail))
    assert p_value(0, 0) == 1
    # Fagerland et al. 2013: airway hyper-responsiveness, 1 and 7 of 21 pairs: 0.039; exact 0.070
    assert p_value(1, 7) == pytest.approx(0.039, abs=5e-4)


def test_verdict_p_value_and_interval_agree_in_every_outcome() -> None:
    for n in (1, 2, 5, 8, 13):
        of = {(b, c): difference_interval(b, c, n) for b in range(n + 1) for c in range(n - b + 1)}
        for (b, c), (low, high) in of.items():
            assert -1 <= low <= (b - c) / n <= high <= 1
            assert low < high
            assert excludes_0((low, high)) == (p_value(b, c) < ALPHA)
            assert of[c, b] == pytest.approx((-high, -low), abs=1e-9), "the sides may be swapped"
            for better in ((b + 1, c), (b + 1, c - 1), (b, c - 1)):
                if better in of:
                    assert of[better][0] >= low - 1e-6
                    assert of[better][1] >= high - 1e-6
        assert any(map(excludes_0, of.values())) == (n >= 5)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_they_agree_whatever_the_size(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, LARGEST))
    n_discordant = data.draw(st.integers(0, min(n, data.draw(st.sampled_from((12, 300, LARGEST))))))
    spread = 3 * n_discordant**0.5
    around = st.floats(-spread, spread).map(lambda x: round(n_discordant / 2 + x))
    first = min(max(data.draw(around), 0), n_discordant)
    compared = compare_models(*predictions(first, n_discordant - first, n))
    low, high = compared.difference_ci95
    assert -1 <= low <= compared.difference <= high <= 1
    is_found = compared.p_value < ALPHA
    assert excludes_0((low, high)) == is_found
    assert ("no difference" not in compared.verdict and n_discordant > 0) == is_found
    assert ("better" in compared.verdict) == (low > 0)
    assert ("worse" in compared.verdict) == (high < 0)


def test_the_smallest_margins_are_told_apart() -> None:
    """Where one more image makes the verdict, the interval's bound passes 0 with it."""
    for n_discordant in (5, 6, 17, 100, 1001, 50_000):
        least = next(
            k
            for k in range(n_discordant // 2, n_discordant + 1)
            if p_value(k, n_discordant - k) < ALPHA
        )
        found = difference_interval(least, n_discordant - least, LARGEST)
        missed = difference_interval(least - 1, n_discordant - least + 1, LARGEST)
        assert missed[0] <= 0 < found[0]


def test_the_bounds_are_quantiles_of_the_confidence_distribution() -> None:
    rng = np.random.default_rng(0)
    for b, c, n in ((3, 9, 300), (5, 0, 198), (0, 0, 50), (40, 30, 100)):
        low, high = difference_interval(b, c, n)
        for bound, level in ((low, 0.025), (high, 0.975)):
            at = difference_distribution(np.array([b]), np.array([c]), n, bound)
            assert at == pytest.approx(level, abs=1e-6)
        # The same by drawing: a beta distribution with a parameter of 0 has one value.
        n_draws = 400_000
        fraction = rng.beta(b + c + 0.5, n - b - c + 0.5, n_draws)
        lower = rng.beta(b, c + 1, n_draws) if b else np.zeros(n_draws)
        upper = rng.beta(b + 1, c, n_draws) if c else np.ones(n_draws)
        part = np.where(rng.random(n_draws) < 0.5, lower, upper)
        drawn = np.quantile(fraction * (2 * part - 1), (0.025, 0.975))
        assert drawn == pytest.approx((low, high), abs=0.02 * (high - low))


def test_the_fewest_wins_are_the_first_with_a_verdict() -> None:
    n_discordant = np.arange(120)
    for n, wins in zip(n_discordant.tolist(), fewest_wins(n_discordant).tolist(), strict=True):
        assert wins > n / 2
        assert wins > n or p_value(wins, n - wins) < ALPHA
        assert n == 0 or p_value(wins - 1, n - wins + 1) >= ALPHA


def test_power_is_the_fraction_of_experiments_that_find_the_better_model() -> None:
    rng = np.random.default_rng(0)
    for n, discordance, difference in ((60, 0.2, 0.15), (198, 0.04, 0.02), (300, 0.03, 0.03)):
        better = (discordance + difference) / 2
        drawn = rng.multinomial(n, (better, discordance - better, 1 - discordance), 40_000)
        pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
        found = [b > c and p_value(b, c) < ALPHA for b, c in pairs.tolist()]
        assert power(n, discordance, difference) == pytest.approx(
            times[found].sum() / 40_000, abs=0.01
        )


def test_the_detectable_difference_is_found_with_the_stated_power() -> None:
    for n, discordance in ((20, 0.1), (198, 0.002), (198, 0.05), (2000, 0.1)):
        difference = detectable_difference(n, discordance)
        assert difference is not None
        assert power(n, discordance, difference) == pytest.approx(POWER, abs=1e-3)
        assert power(n, discordance, 0.9 * difference) < POWER - 0.02
    small, large = detectable_difference(2000, 0.05), detectable_difference(500, 0.05)
    assert small is not None
    assert large is not None
    assert small < large


def test_four_images_show_no_difference() -> None:
    assert p_value(4, 0) > ALPHA > p_value(5, 0)
    assert detectable_difference(4, 0.5) is None
    assert detectable_difference(5, 0.5) == pytest.approx(POWER**0.2, abs=1e-4)
