"""Measure the coverage of our 95% confidence intervals, and the false verdicts of our test.

    python -m benchmarks.models.intervals

At the sizes and accuracies of our sets. Accuracy: the exact coverage of Wilson's interval, by
summing binomials, averaged over accuracies around each. Macro F1: confusion matrices are drawn with
recalls that differ by class, and our interval is compared with the percentile bootstrap. Difference
of two models: the exact coverage, averaged over baselines that make one to three times the model's
errors and share none to all of the model's; beside it Tango's score interval (1998), which belongs
to the asymptotic McNemar test. False verdicts: how often our test finds one of two equal models
better, exactly, at the worst discordance; and the exact and the asymptotic test. Ends with 1 where
a target is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from search.evaluation.intervals import macro_intervals, macro_scores, wilson_interval
from search.evaluation.mcnemar import (
    ALPHA,
    detectable_difference,
    difference_distribution,
    fewest_wins,
    power,
)

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
_MAX_FALSE = 0.0501  # 5.0%: that of 10,000 images swings around 5% by less than a hundredth
_BOOTSTRAPS = 500
_MAX_DISCORDANCE = 2 / 3
_REACH = 5  # standard deviations of the number of discordant images that are summed

Distribution = Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]
"""Of a difference of paired accuracies; see `difference_distribution`."""


def main() -> int:
    """Run the benchmark; the exit code is 1 where a target is missed."""
    arguments = command_line(__doc__ or "").parse_args()
    n_experiments = {"smoke": 5, "quick": 200, "full": 600}[arguments.mode]
    n_steps = {"smoke": 2, "quick": 7, "full": 13}[arguments.mode]
    report = Report(
        "intervals", "Coverage: intervals that contain the true value; 0.95 is nominal."
    )
    rng = np.random.default_rng(0)
    accuracies, macros, differences, verdicts = [], [], [], []
    for name, (sizes, accuracy) in SETS.items():
        n = sum(sizes)
        log_progress(name)
        accuracies.append(_accuracy_coverage(name, sizes, accuracy))
        macros.append(_macro_f1_coverage(name, np.array(sizes), accuracy, n_experiments, rng))
        # Of many images the coverage hardly depends on the truth.
        differences.append(_difference_coverage(name, n, accuracy, n_steps if n < 1000 else 5))
        verdicts.append(_false_verdicts(name, n))
    sizes_of_all = (20, 100) if arguments.mode == "smoke" else (*range(5, 401), 1000, 2000)
    other_sizes = [_false_verdicts(f"{n}", n) for n in sizes_of_all]
    report.tables = {
        "accuracy: Wilson, exact": accuracies,
        f"macro F1, {n_experiments:,} experiments": macros,
        "difference of two models, exact, all baselines": differences,
        "false verdicts under equal models, exact: the highest of all discordances": verdicts,
        "difference of two models, exact, 300 images: by discordant images and the better's part": [
            _by_part(300, n_discordant) for n_discordant in (1, 2, 3, 4, 5, 6, 8, 12, 20, 50)
        ],
        "detectable difference (power 80%)": [_power(n) for n in (33, 111, 198, 300, 1000, 10_000)],
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
    for what, rows in (("sets", verdicts), ("5 to 400, 1,000 and 2,000 images", other_sizes)):
        highest = max(row["mid-p"] for row in rows)
        report.ratios.append(
            Ratio(f"false verdicts, highest of all {what}", highest, _MAX_FALSE, at_least=False)
        )
    report.notes.append(
        "Equal models are discordant on over two thirds only if both are wrong on over a third."
    )
    report.publish(arguments)
    missed = [ratio for ratio in report.ratios if "MISSED" in ratio.verdict]
    return int(bool(missed) and arguments.mode != "smoke")


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


def _difference_coverage(name: str, n: int, accuracy: float, n_steps: int) -> dict[str, Any]:
    """Average the coverage over the errors of the baseline, and over how many it shares."""
    errors = 1 - accuracy
    truths = [
        ((times - shared) * errors, (1 - shared) * errors)
        for times in np.linspace(1, 3, n_steps)
        for shared in np.linspace(0, 1, n_steps)
        if times > shared  # else both are the same model
    ]
    ours = [paired_coverage(difference_distribution, n, *truth) for truth in truths]
    tango = [paired_coverage(tango_distribution, n, *truth) for truth in truths]
    model_only, baseline_only = truths[int(np.argmin(ours))]
    return {
        "set": name,
        "truths": len(truths),
        "discordant": n * float(np.mean(truths)) * 2,
        "ours": float(np.mean(ours)),
        "lowest": min(ours),
        "at, model : baseline": f"{n * model_only:.1f} : {n * baseline_only:.1f}",
        "highest": max(ours),
        "Tango": float(np.mean(tango)),
        "lowest, Tango": min(tango),
    }


def paired_coverage(
    distribution: Distribution, n: int, first_only: float, second_only: float
) -> float:
    """Return the exact coverage of the interval between two quantiles of a distribution.

    Args:
        distribution: Falls as the first model wins more of the discordant images.
        n: Images.
        first_only: The probability that only the first model predicts an image correctly.
        second_only: The same of the second.
    """
    discordance, truth = first_only + second_only, first_only - second_only
    reach = _REACH * (n * discordance * (1 - discordance)) ** 0.5 + 6
    centre = n * discordance
    counts = np.arange(max(0, int(centre - reach)), min(n, int(centre + reach)) + 1)

    def first_below(level: float) -> np.ndarray:
        """Return the fewest wins, for each count, at which the distribution is below a level."""
        low, high = np.zeros_like(counts), counts + 1
        while (low < high).any():
            middle = (low + high) // 2
            wins = np.minimum(middle, counts)  # where all wins are too few, that is the end
            is_below = distribution(wins, counts - wins, n, truth) < level
            low = np.where((low < high) & ~is_below, middle + 1, low)
            high = np.where((low < high) & is_below, middle, high)
        return low

    # Covered is what has between 0.025 and 0.975 below the truth.
    fewest, most = first_below(0.975), first_below(0.025) - 1
    part = first_only / discordance
    covered = binom.cdf(most, counts, part) - binom.cdf(fewest - 1, counts, part)
    return float(binom.pmf(counts, n, discordance) @ covered)


def tango_distribution(
    n_first_only: np.ndarray, n_second_only: np.ndarray, n: int, difference: float
) -> np.ndarray:
    """Return what Tango's score interval (1998) has below a difference: [k]."""
    b, c = np.asarray(n_first_only, np.float64), np.asarray(n_second_only, np.float64)
    linear = (2 * n - b + c) * difference - b - c
    root = np.sqrt(np.maximum(linear**2 + 8 * n * c * difference * (1 - difference), 0))
    second = (root - linear) / (4 * n)  # the most likely fraction, given the difference
    variance = np.maximum(n * (2 * second + difference * (1 - difference)), 1e-12)
    return np.asarray(norm.cdf((n * difference - b + c) / np.sqrt(variance)))


def _false_verdicts(name: str, n: int) -> dict[str, Any]:
    """Return the highest fraction of verdicts between equal models, over all discordances."""
    counts = np.arange(n + 1)
    exact = binom.ppf(ALPHA / 2, counts, 0.5)
    exact -= 2 * binom.cdf(exact, counts, 0.5) >= ALPHA  # of the losing model's wins, the most
    asymptotic = np.ceil((counts - norm.isf(ALPHA / 2) * np.sqrt(counts)) / 2) - 1
    chances = {
        "mid-p": 2 * binom.sf(fewest_wins(counts) - 1, counts, 0.5),
        "exact": 2 * binom.cdf(exact, counts, 0.5),
        "asymptotic": 2 * binom.cdf(asymptotic, counts, 0.5),
    }
    usual = np.concatenate(
        [np.geomspace(1 / n, 0.05, 40), np.linspace(0.05, _MAX_DISCORDANCE, 100)]
    )
    weights = binom.pmf(counts, n, usual[:, None])
    highest = {test: weights @ chance for test, chance in chances.items()}
    beyond = binom.pmf(counts, n, np.linspace(_MAX_DISCORDANCE, 1, 60)[:, None]) @ chances["mid-p"]
    return {
        "set": name,
        "mid-p": float(highest["mid-p"].max()),
        "at a discordance of": float(usual[highest["mid-p"].argmax()]),
        "exact": float(highest["exact"].max()),
        "asymptotic": float(highest["asymptotic"].max()),
        "mid-p, above two thirds": float(beyond.max()),
    }


def _by_part(n: int, n_discordant: int) -> dict[str, Any]:
    """Return the coverage by the part of the discordant images that the better model wins."""
    return {
        "discordant": n_discordant,
        **{
            f"{part:g}": paired_coverage(
                difference_distribution, n, *(n_discordant / n * np.array([part, 1 - part]))
            )
            for part in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
        },
    }


def _power(n: int) -> dict[str, Any]:
    """Return the detectable difference by discordance, and the power at 2 points."""
    found = {
        f"discordance {fraction:g}": detectable_difference(n, fraction)
        for fraction in (0.01, 0.02, 0.05, 0.1, 0.2)
    }
    return {"n": n, **found, "power at 0.02, discordance 0.05": power(n, 0.05, 0.02)}


if __name__ == "__main__":
    sys.exit(main())
