import numpy as np
import pytest
from scipy.stats import multinomial

from benchmarks.models.intervals import paired_coverage, tango_distribution
from search.evaluation.mcnemar import difference_distribution, difference_interval


def test_the_coverage_is_that_of_all_outcomes() -> None:
    n = 14
    for first, second in ((0.3, 0.1), (0.15, 0.15), (0.25, 0.0)):
        covered = 0.0
        for b in range(n + 1):
            for c in range(n + 1 - b):
                probability = multinomial.pmf(
                    (b, c, n - b - c), n, (first, second, 1 - first - second)
                )
                if probability > 1e-12:
                    low, high = difference_interval(b, c, n)
                    covered += probability * (low <= first - second <= high)
        found = paired_coverage(difference_distribution, n, first, second)
        assert found == pytest.approx(covered, abs=1e-4)


def test_tangos_interval_is_the_published_one() -> None:
    """Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33: 1 and 7 of 21, airways."""
    first, second = np.array([1]), np.array([7])
    assert tango_distribution(first, second, 21, -0.517) == pytest.approx(0.025, abs=5e-4)
    assert tango_distribution(first, second, 21, -0.026) == pytest.approx(0.975, abs=5e-4)
