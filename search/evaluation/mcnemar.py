"""McNemar's test (1947) of two models on the same images: p-value, interval and power.

Only discordant images, which one model alone predicts correctly, tell two models apart. The p-value
is the mid-p-value, which keeps to its 5% where the exact test stays far below (Fagerland, Lydersen,
Laake 2013, BMC Medical Research Methodology 13:91). The interval consists of the quantiles of a
distribution whose tail at 0 is half the p-value: it excludes 0 where p < 0.05, and nowhere else.
`benchmarks.models.intervals` measures the coverage and the false verdicts.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv

from search.runs.summary import Interval

ALPHA = 0.05
"""A difference is beyond chance where the p-value is below."""

POWER = 0.8
"""With this probability the detectable difference is found."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_REACH = 9.0  # standard deviations of a count that are summed
_TOLERANCE = 1e-14


def p_value(n_first_only: int, n_second_only: int) -> float:
    """Return the two-sided mid-p-value.

    Args:
        n_first_only: Images that only the first model predicts correctly.
        n_second_only: Images that only the second model predicts correctly.
    """
    from scipy.stats import binom  # takes half a second

    fewer, n_discordant = min(n_first_only, n_second_only), n_first_only + n_second_only
    tails = 2 * binom.cdf(fewer, n_discordant, 0.5) - binom.pmf(fewer, n_discordant, 0.5)
    return min(1.0, float(tails))


def difference_interval(n_first_only: int, n_second_only: int, n: int) -> Interval:
    """Return the 95% confidence interval of a difference of paired accuracies.

    Args:
        n_first_only: Images that only the first model predicts correctly.
        n_second_only: Images that only the second model predicts correctly.
        n: Images in all, n >= 1.
    """
    low = _lower_bound(n_first_only, n_second_only, n)
    high = -_lower_bound(n_second_only, n_first_only, n)
    # They contain it but where nearly all images are discordant, and in one model's favour.
    observed = (n_first_only - n_second_only) / n
    return min(low, observed), max(high, observed)


def difference_distribution(
    n_first_only: np.ndarray, n_second_only: np.ndarray, n: int, difference: float
) -> np.ndarray:
    """Return the confidence that a difference of paired accuracies is at most `difference`.

    The difference is f (2 t - 1), where f is the fraction of discordant images and t the first
    model's part of these. f follows its Jeffreys posterior, t the mid-p confidence distribution of
    a binomial fraction: the equal mixture of the two beta distributions that have Clopper and
    Pearson's bounds (1934) as quantiles. So the confidence at 0 is the one-sided mid-p-value.

    Args:
        n_first_only: Images that only the first model predicts correctly, [k].
        n_second_only: Images that only the second model predicts correctly, [k].
        n: Images in all.
        difference: The first model's accuracy minus the second's, in [-1, 1].

    Returns:
        float64 [k], in [0, 1].
    """
    if difference < 0:
        return 1 - difference_distribution(n_second_only, n_first_only, n, -difference)
    first, second = (np.asarray(counts, np.float64) for counts in (n_first_only, n_second_only))
    a, b = first + second + 0.5, n - first - second + 0.5
    smaller = betainc(a, b, difference)  # where f is, the difference is too, whatever t
    levels = smaller[..., None] + (1 - smaller[..., None]) * (1 + _NODES) / 2
    fractions = np.maximum(betaincinv(a[..., None], b[..., None], levels), 1e-300)
    largest = np.minimum((1 + difference / fractions) / 2, 1.0)  # t
    # A beta distribution with a parameter of 0 is all at 0, or all at 1.
    at_0, at_1 = first == 0, second == 0
    of_second = np.where(at_0, 1.0, _mean_cdf(np.where(at_0, 1, first), second + 1, largest))
    of_first = np.where(at_1, 0.0, _mean_cdf(first + 1, np.where(at_1, 1, second), largest))
    return np.asarray(smaller + (1 - smaller) * (of_second + of_first) / 2)


def fewest_wins(n_discordant: np.ndarray) -> np.ndarray:
    """Return how many of the discordant images one model must win for a verdict.

    Args:
        n_discordant: int [k].

    Returns:
        int64 [k]; more than there are where no outcome gives a verdict.
    """
    from scipy.stats import binom  # takes half a second

    wins = np.asarray(binom.isf(ALPHA / 2, n_discordant, 0.5), np.int64)
    # The mid-p-value counts half of the outcome itself: the tail of the next count may suffice.
    for _ in range(2):
        tail = binom.sf(wins, n_discordant, 0.5) + binom.pmf(wins, n_discordant, 0.5) / 2
        wins = wins + (2 * tail >= ALPHA)
    return wins


def power(n: int, discordance: float, difference: float) -> float:
    """Return the probability that the test finds the better model.

    Args:
        n: Images, n >= 1.
        discordance: The expected fraction of discordant images.
        difference: The better model's accuracy minus the other's, in (0, 1]. It takes at least as
            many discordant images: where it exceeds `discordance` it stands for that too.
    """
    from scipy.stats import binom  # takes half a second

    discordance = max(discordance, difference)
    centre, reach = n * discordance, _REACH * (n * discordance * (1 - discordance)) ** 0.5 + 1
    n_discordant = np.arange(max(0, int(centre - reach)), min(n, int(centre + reach)) + 1)
    part = (1 + difference / discordance) / 2
    found = binom.sf(fewest_wins(n_discordant) - 1, n_discordant, part)
    return float(binom.pmf(n_discordant, n, discordance) @ found)


def detectable_difference(n: int, discordance: float) -> float | None:
    """Return the smallest difference that the test finds with a probability of `POWER`.

    Args:
        n: Images, n >= 1.
        discordance: The expected fraction of discordant images.

    Returns:
        The difference of accuracies, in (0, 1]; None where the images are too few for any.
    """
    if power(n, discordance, 1.0) < POWER:
        return None
    root = brentq(
        lambda difference: power(n, discordance, difference) - POWER, 1e-9, 1.0, xtol=1e-6
    )
    return float(root)


def _lower_bound(n_first_only: int, n_second_only: int, n: int) -> float:
    """Return the quantile of `ALPHA` / 2; its sign follows from the p-value itself."""
    tail = p_value(n_first_only, n_second_only) / 2
    at_0 = tail if n_first_only > n_second_only else 1 - tail

    def excess(difference: float) -> float:
        if difference == 0:
            return at_0 - ALPHA / 2
        counts = np.array(n_first_only), np.array(n_second_only)
        return float(difference_distribution(*counts, n, difference)) - ALPHA / 2

    bracket = (0.0, 1.0) if excess(0.0) < 0 else (-1.0, 0.0)
    return float(brentq(excess, *bracket, xtol=_TOLERANCE))


def _mean_cdf(a: np.ndarray, b: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean over the nodes [k, nodes] of a beta distribution's cdf."""
    return np.asarray(betainc(a[..., None], b[..., None], values) @ (_WEIGHTS / 2))
