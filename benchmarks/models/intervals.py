"""Measure the coverage of our 95% confidence intervals on simulated experiments.

    python -m benchmarks.models.intervals

Experiments are drawn from known distributions, at the sizes and accuracies of our sets. Accuracy:
the exact coverage of Wilson's interval, by summing binomials, averaged over accuracies around each.
Macro F1: confusion matrices are drawn with recalls that differ by class, and our interval is
compared with the percentile bootstrap. Differences: pairs of models are drawn that have 0.5 to 1.5
times the errors and whose disagreements favour one of them more or less; our interval is compared
with the bootstrap.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.harness.reporting import Ratio, Report, command_line
from search.evaluation.intervals import macro_intervals, macro_scores, wilson_interval
from search.evaluation.mcnemar import difference_interval

SETS: Mapping[str, tuple[Sequence[int], float]] = {
    "caltech, 198": ((10, 20, 87, 48, 23, 10), 0.99),
    "cats_dogs, 300": ((150, 150), 0.98),
    "products, 111": ((27, 28, 28, 28), 0.97),
    "tools, 33": ((3, 6, 4, 10, 10), 0.91),
    "digits, 359": ((36,) * 10, 0.994),
    "fashion_mnist, 10,000": ((1000,) * 10, 0.93),
}
"""By set, the test images of each class, and an accuracy."""

_LOWEST, _HIGHEST = 0.93, 0.97
_BOOTSTRAPS = 500


def main() -> int:
    """Run the benchmark."""
    arguments = command_line(__doc__ or "").parse_args()
    n_experiments = {"smoke": 5, "quick": 200, "full": 600}[arguments.mode]
    report = Report(
        "intervals", "Coverage: intervals that contain the true value; 0.95 is nominal."
    )
    rng = np.random.default_rng(0)
    accuracies = [
        _accuracy_coverage(name, sizes, accuracy) for name, (sizes, accuracy) in SETS.items()
    ]
    macros, differences = [], []
    for name, (sizes, accuracy) in SETS.items():
        macros.append(_macro_f1_coverage(name, np.array(sizes), accuracy, n_experiments, rng))
        differences.append(
            _difference_coverage(name, sum(sizes), accuracy, 10 * n_experiments, rng)
        )
    report.tables = {
        "accuracy: Wilson, exact": accuracies,
        f"macro F1, {n_experiments} experiments": macros,
        f"difference of two models, {10 * n_experiments:,} experiments": differences,
    }
    for what, rows, key in (
        ("Wilson", accuracies, "Wilson"),
        ("macro F1", macros, "ours"),
        ("difference", differences, "ours"),
    ):
        covered = [row[key] for row in rows]
        report.ratios += [
            Ratio(f"{what}, lowest of all sets", min(covered), _LOWEST),
            Ratio(f"{what}, highest of all sets", max(covered), _HIGHEST, at_least=False),
        ]
    report.publish(arguments)
    return 0


def _accuracy_coverage(name: str, sizes: Sequence[int], accuracy: float) -> dict[str, Any]:
    """Average the exact coverage over accuracies with 0.5 to 1.5 times the set's error."""
    n = sum(sizes)
    bounds = np.array([wilson_interval(k, n) for k in range(n + 1)])
    truths = 1 - (1 - accuracy) * np.linspace(0.5, 1.5, 41)
    covered = [
        binom.pmf(np.flatnonzero((bounds[:, 0] <= p) & (p <= bounds[:, 1])), n, p).sum()
        for p in truths
    ]
    return {
        "set": name,
        "accuracy": accuracy,
        "Wilson": float(np.mean(covered)),
        "lowest": float(min(covered)),
        "highest": float(max(covered)),
    }


def _macro_f1_coverage(
    name: str, sizes: np.ndarray, accuracy: float, n_experiments: int, rng: np.random.Generator
) -> dict[str, Any]:
    hits = {"ours": 0, "bootstrap": 0}
    widths = {"ours": 0.0, "bootstrap": 0.0}
    for _ in range(n_experiments):
        truth = _draw_truth(len(sizes), accuracy, rng)
        target = macro_scores(truth * sizes[:, None])["macro_f1"]
        drawn = np.stack([rng.multinomial(n, row) for n, row in zip(sizes, truth, strict=True)])
        seed = int(rng.integers(2**31))
        for key, (low, high) in {
            "ours": macro_intervals(drawn.tolist(), seed)["macro_f1"],
            "bootstrap": _bootstrap_macro(drawn, rng),
        }.items():
            hits[key] += bool(low <= target <= high)
            widths[key] += (high - low) / n_experiments
    return {
        "set": name,
        "accuracy": accuracy,
        **{key: n / n_experiments for key, n in hits.items()},
        **{f"width, {key}": width for key, width in widths.items()},
    }


def _draw_truth(n_classes: int, accuracy: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a confusion matrix: recall differs by class, and errors concentrate on few classes."""
    missed = np.minimum(0.6, (1 - accuracy) * rng.gamma(1.0, 1.0, n_classes))
    truth = np.zeros((n_classes, n_classes))
    for label in range(n_classes):
        others = np.arange(n_classes) != label
        truth[label, others] = missed[label] * rng.dirichlet(np.full(n_classes - 1, 0.5))
        truth[label, label] = 1 - missed[label]
    return truth


def _bootstrap_macro(drawn: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    resampled = np.stack(
        [rng.multinomial(row.sum(), row / row.sum(), size=_BOOTSTRAPS) for row in drawn], axis=1
    )
    low, high = np.quantile(macro_scores(resampled)["macro_f1"], (0.025, 0.975))
    return float(low), float(high)


def _difference_coverage(
    name: str, n: int, accuracy: float, n_experiments: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Draw pairs of models, one of which wins half or more of their disagreements."""
    apart = (1 - accuracy) * rng.uniform(0.5, 1.5, n_experiments)
    gained = apart * rng.uniform(0.5, 0.9, n_experiments)
    fractions = np.stack([gained, apart - gained, 1 - apart], axis=1)
    truth = fractions[:, 0] - fractions[:, 1]
    drawn = np.stack([rng.multinomial(n, row) for row in fractions])
    intervals = {(b, c): difference_interval(b, c, n) for b, c, _ in drawn.tolist()}
    ours = np.array([intervals[b, c] for b, c, _ in drawn.tolist()])
    resampled = [rng.multinomial(n, row / n, size=_BOOTSTRAPS) for row in drawn]
    gaps = [(one[:, 0] - one[:, 1]) / n for one in resampled]
    bootstrap = np.array([np.quantile(gap, (0.025, 0.975)) for gap in gaps])
    return {
        "set": name,
        "disagreements": float(apart.mean() * n),
        **{
            key: float(((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean())
            for key, bounds in (("ours", ours), ("bootstrap", bootstrap))
        },
    }


if __name__ == "__main__":
    sys.exit(main())
