"""Two models on the same images: is one better, beyond what chance would make of it?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

_SURE = 0.05
_DRAWS = 20_000
_PRIOR = 3 / 8
"""Images added to each side. Between the neutral 1/3 (Kerman 2011) and Jeffreys' 1/2, which cover
too seldom and too often where a handful of images tell two models apart."""


@dataclass(frozen=True)
class Comparison:
    """A model against a baseline, image by image.

    Attributes:
        n: Images.
        accuracy: Of the model.
        baseline_accuracy: Of the baseline.
        n_model_only_correct: Images that the model alone has right.
        n_baseline_only_correct: Images that the baseline alone has right.
        difference: In accuracy, the model's minus the baseline's.
        difference_ci95: Its 95 % interval.
        p_value: Of the exact McNemar test (1947), two-sided.
        verdict: What that means, in words.
    """

    n: int
    accuracy: float
    baseline_accuracy: float
    n_model_only_correct: int
    n_baseline_only_correct: int
    difference: float
    difference_ci95: tuple[float, float]
    p_value: float
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Return what the summary keeps."""
        return asdict(self)


def compare(labels: np.ndarray, model: np.ndarray, baseline: np.ndarray) -> Comparison:
    """Compare two models' predictions of the same images.

    Args:
        labels: int64 [n], n >= 1.
        model: Predicted classes, int64 [n].
        baseline: Those of the baseline.
    """
    n = len(labels)
    model_right, baseline_right = model == labels, baseline == labels
    gained = int((model_right & ~baseline_right).sum())
    lost = int((baseline_right & ~model_right).sum())
    p_value = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    difference = (gained - lost) / n
    return Comparison(
        n=n,
        accuracy=float(model_right.mean()),
        baseline_accuracy=float(baseline_right.mean()),
        n_model_only_correct=gained,
        n_baseline_only_correct=lost,
        difference=difference,
        difference_ci95=difference_interval(gained, lost, n),
        p_value=p_value,
        verdict=_describe(difference, p_value, gained, lost),
    )


def difference_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a difference of paired shares, by draws from their posterior.

    What is added to each side keeps it open where the models hardly differ: there a bootstrap would
    resample nothing.

    Args:
        gained: Images that the first alone has right.
        lost: Images that the second alone has right.
        n: Images in all.
    """
    counts = np.array([gained + _PRIOR, lost + _PRIOR, n - gained - lost + 1])
    drawn = np.random.default_rng(0).standard_gamma(counts, (_DRAWS, 3))
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / drawn.sum(axis=1), (0.025, 0.975))
    seen = (gained - lost) / n
    return min(float(low), seen), max(float(high), seen)


def _describe(difference: float, p_value: float, gained: int, lost: int) -> str:
    if gained + lost == 0:
        return "both have the same images right"
    if p_value >= _SURE:
        return "no difference beyond chance"
    return f"{'better' if difference > 0 else 'worse'} beyond chance"
