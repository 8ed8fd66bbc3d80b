"""Compare two models on the same images with the exact McNemar test."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from search.runs.summary import Comparison

_ALPHA = 0.05
_DRAWS = 20_000
_PRIOR = 3 / 8
"""Images added to each side. Between the neutral 1/3 (Kerman 2011) and Jeffreys' 1/2, which cover
too seldom and too often where a handful of images tell two models apart."""


def compare_models(labels: np.ndarray, model: np.ndarray, baseline: np.ndarray) -> Comparison:
    """Compare two models' predictions of the same images by the exact McNemar test.

    Args:
        labels: int64 [n], n >= 1.
        model: Predicted classes, int64 [n].
        baseline: The baseline's predicted classes, int64 [n].
    """
    n = len(labels)
    model_correct, baseline_correct = model == labels, baseline == labels
    n_model_only = int((model_correct & ~baseline_correct).sum())
    n_baseline_only = int((baseline_correct & ~model_correct).sum())
    n_discordant = n_model_only + n_baseline_only
    p_value = float(binomtest(n_model_only, n_discordant, 0.5).pvalue) if n_discordant else 1.0
    difference = (n_model_only - n_baseline_only) / n
    return Comparison(
        n=n,
        accuracy=float(model_correct.mean()),
        baseline_accuracy=float(baseline_correct.mean()),
        n_model_only_correct=n_model_only,
        n_baseline_only_correct=n_baseline_only,
        difference=difference,
        difference_ci95=difference_interval(n_model_only, n_baseline_only, n),
        p_value=p_value,
        verdict=_describe(difference, p_value, n_discordant),
    )


def difference_interval(n_first_only: int, n_second_only: int, n: int) -> tuple[float, float]:
    """Return the 95% credible interval of a difference of paired accuracies.

    It is drawn from the posterior. What is added to each side keeps it open where the models hardly
    differ: there a bootstrap would resample nothing.

    Args:
        n_first_only: Images that only the first model predicts correctly.
        n_second_only: Images that only the second model predicts correctly.
        n: Images in all.
    """
    n_others = n - n_first_only - n_second_only
    counts = np.array([n_first_only + _PRIOR, n_second_only + _PRIOR, n_others + 1])
    drawn = np.random.default_rng(0).standard_gamma(counts, (_DRAWS, 3))
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / drawn.sum(axis=1), (0.025, 0.975))
    observed = (n_first_only - n_second_only) / n
    return min(float(low), observed), max(float(high), observed)


def _describe(difference: float, p_value: float, n_discordant: int) -> str:
    if n_discordant == 0:
        return "both predict the same images correctly"
    if p_value >= _ALPHA:
        return "no difference beyond chance"
    return f"{'better' if difference > 0 else 'worse'} beyond chance"
