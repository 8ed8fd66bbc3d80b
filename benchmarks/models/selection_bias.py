"""Measure the optimism of the best cross-validation accuracy, before and after its correction.

    python -m benchmarks.models.selection_bias

Candidates that are correct on the same images, or not, more often than chance are drawn: an image
has a difficulty, which all candidates share, and each candidate adds its own noise. Their true
accuracies are equal or differ; the centre crop, where it is tried, changes single images and not
the true accuracy. `search.evaluation.selection` chooses among them as a run does, with
log losses that follow from the same draws, and corrects the accuracy of its choice. Bias is in
points: the mean of what is reported minus the true accuracy of the chosen candidate. Coverage is of
the 95% Wilson interval around each: how often it contains that true accuracy.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy.special import log_expit
from scipy.stats import norm

from benchmarks.harness.reporting import Ratio, Report, command_line
from search.evaluation.intervals import wilson_interval
from search.evaluation.selection import (
    MIN_GAIN_SE,
    Candidate,
    ImageScores,
    center_crop_gain,
    choose_candidate,
    corrected_accuracy,
)

SIZES = (100, 150, 450, 1500)
CANDIDATES = ((1, False), (1, True), (2, False), (4, False), (4, True), (6, False))
"""Their number, and whether the centre crop is tried with each."""

ACCURACIES = (0.9, 0.97)
SPREADS = (0.0, 0.02)
"""True accuracies are evenly spaced, the lowest this much below the best."""

_SHARED = 0.8
"""Fraction of the variance of a candidate's logits that all candidates have in common."""
_SHARED_WITH_CROP = 0.9
"""The same of a candidate's logits with the centre crop and without."""
_SHARPNESS = 3.0
_BOOTSTRAPS = 100
_MAX_BIAS, _NOTABLE_BIAS = 0.3, 0.5  # points
_LOWEST, _HIGHEST = 0.93, 0.97


def main() -> int:
    """Run the benchmark."""
    arguments = command_line(__doc__ or "").parse_args()
    n_experiments = {"smoke": 2, "quick": 200, "full": 500}[arguments.mode]
    report = Report(
        "selection_bias", "Bias and coverage of the best of several cross-validation accuracies."
    )
    rows = [
        _measure(n, k, with_crop, accuracy, spread, n_experiments)
        for n in SIZES
        for k, with_crop in CANDIDATES
        for accuracy in ACCURACIES
        for spread in (SPREADS if k > 1 else SPREADS[:1])
    ]
    report.tables[f"{n_experiments:,} experiments each"] = rows
    keys = ("bias", "bias, corrected", "coverage", "coverage, corrected")
    by_size = [
        {"images": n, "candidates": k, "crop": "tried" if with_crop else ""}
        | {key: float(np.mean([row[key] for row in some])) for key in keys}
        for n in SIZES
        for k, with_crop in CANDIDATES
        if (
            some := [
                row
                for row in rows
                if (row["images"], row["candidates"], bool(row["crop"])) == (n, k, with_crop)
            ]
        )
    ]
    report.tables["mean over accuracies and spreads"] = by_size
    notable = [row for row in rows if row["bias"] >= _NOTABLE_BIAS]
    report.ratios = [
        Ratio("largest bias of the plain mean, points", max(row["bias"] for row in rows)),
        Ratio(
            f"largest |bias| after, where it was {_NOTABLE_BIAS} or more before, points",
            max((abs(row["bias, corrected"]) for row in notable), default=float("nan")),
            _MAX_BIAS,
            at_least=False,
        ),
        Ratio(
            "lowest bias after, of all rows, points", min(row["bias, corrected"] for row in rows)
        ),
        Ratio(
            "coverage after, lowest", min(row["coverage, corrected"] for row in by_size), _LOWEST
        ),
        Ratio(
            "coverage after, highest",
            max(row["coverage, corrected"] for row in by_size),
            _HIGHEST,
            at_least=False,
        ),
    ]
    report.publish(arguments)
    return 0


def _measure(
    n: int,
    n_candidates: int,
    with_crop: bool,
    accuracy: float,
    spread: float,
    n_experiments: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(n + n_candidates)
    truths = np.linspace(accuracy - spread, accuracy, n_candidates)
    plain, corrected, truth = (np.zeros(n_experiments) for _ in range(3))
    for place in range(n_experiments):
        candidates = _draw(n, truths, with_crop, rng)
        chosen = choose_candidate(candidates)
        plain[place] = _chosen_scores(candidates[chosen]).correct.mean()
        corrected[place] = corrected_accuracy(candidates, n_bootstraps=_BOOTSTRAPS, seed=place)
        truth[place] = truths[chosen]
    return {
        "images": n,
        "candidates": n_candidates,
        "crop": "tried" if with_crop else "",
        "accuracy": accuracy,
        "spread": spread,
        "bias": 100 * float((plain - truth).mean()),
        "bias, corrected": 100 * float((corrected - truth).mean()),
        "coverage": _coverage(plain, truth, n),
        "coverage, corrected": _coverage(corrected, truth, n),
    }


def _chosen_scores(candidate: Candidate) -> ImageScores:
    gain, standard_error = center_crop_gain(candidate)
    keeps_crop = candidate.with_crop is not None and gain > MIN_GAIN_SE * standard_error
    return candidate.with_crop if keeps_crop and candidate.with_crop else candidate.without_crop


def _draw(n: int, truths: np.ndarray, with_crop: bool, rng: np.random.Generator) -> list[Candidate]:
    """Draw each candidate's margins: those above 0 are correct."""
    shared = _SHARED**0.5 * rng.normal(size=n)
    candidates = []
    for truth in truths:
        margins = shared + (1 - _SHARED) ** 0.5 * rng.normal(size=n)
        crop = None
        if with_crop:
            noise = (1 - _SHARED_WITH_CROP) ** 0.5 * rng.normal(size=n)
            crop = _scores(norm.ppf(truth) + _SHARED_WITH_CROP**0.5 * margins + noise)
        candidates.append(Candidate(_scores(norm.ppf(truth) + margins), crop))
    return candidates


def _scores(margins: np.ndarray) -> ImageScores:
    return ImageScores(margins > 0, -log_expit(_SHARPNESS * margins))


def _coverage(accuracies: np.ndarray, truths: np.ndarray, n: int) -> float:
    bounds = np.array([wilson_interval(accuracy * n, n) for accuracy in accuracies])
    return float(((bounds[:, 0] <= truths) & (truths <= bounds[:, 1])).mean())


if __name__ == "__main__":
    sys.exit(main())
