"""Compare two models' predictions of the same images."""

from __future__ import annotations

import numpy as np

from search.evaluation.mcnemar import (
    ALPHA,
    detectable_difference,
    difference_interval,
    p_value,
)
from search.runs.summary import Comparison


def compare_models(
    labels: np.ndarray,
    model: np.ndarray,
    baseline: np.ndarray,
    expected_discordance: float | None = None,
) -> Comparison:
    """Compare two models by McNemar's test.

    Args:
        labels: int64 [n], n >= 1.
        model: Predicted classes, int64 [n].
        baseline: The baseline's predicted classes, int64 [n].
        expected_discordance: What other images say of the fraction, in (0, 1), that one model alone
            predicts correctly: it gives the detectable difference. None gives none.
    """
    n = len(labels)
    model_correct, baseline_correct = model == labels, baseline == labels
    n_model_only = int((model_correct & ~baseline_correct).sum())
    n_baseline_only = int((baseline_correct & ~model_correct).sum())
    p = p_value(n_model_only, n_baseline_only)
    difference = (n_model_only - n_baseline_only) / n
    return Comparison(
        n=n,
        accuracy=float(model_correct.mean()),
        baseline_accuracy=float(baseline_correct.mean()),
        n_model_only_correct=n_model_only,
        n_baseline_only_correct=n_baseline_only,
        difference=difference,
        difference_ci95=difference_interval(n_model_only, n_baseline_only, n),
        p_value=p,
        verdict=_describe(difference, p, n_model_only + n_baseline_only),
        expected_discordance=expected_discordance,
        detectable_difference=None
        if expected_discordance is None
        else detectable_difference(n, expected_discordance),
    )


def _describe(difference: float, p: float, n_discordant: int) -> str:
    if n_discordant == 0:
        return "both predict the same images correctly"
    if p >= ALPHA:
        return "no difference beyond chance"
    return f"{'better' if difference > 0 else 'worse'} beyond chance"
