"""Choose a finalist by out-of-fold predictions, and correct its score for having been chosen.

The best of several scores on the same images is optimistic. BBC-CV (Tsamardinos, Greasidou and
Borboudakis 2018, Machine Learning 107) repeats the choice on bootstrap samples of the images, and
scores each on the images that its sample left out. No model is trained again.
`benchmarks.models.selection_bias` simulates what it corrects.

The module is long because candidates are chosen in two ways: by correct images, which add up over
groups of near-duplicates, and by scores that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from search.evaluation.intervals import (
    bootstrap,
    bootstrap_groups,
    mean_with_error,
    normal_interval,
    score_difference,
    wilson_interval,
)
from search.runs.summary import Interval
from spaces.rules import Metric
from trainables.metrics import compute_score, resample_scores, score_bounds

MIN_GAIN_SE = 1.0
"""Standard errors by which the centre crop has to lower the log loss (docs/design.md), or to raise
the score where the metric is not the accuracy."""


@dataclass(frozen=True)
class ImageScores:
    """Out-of-fold scores of one model, image by image.

    Attributes:
        correct: bool [n], whether the predicted class is the label.
        log_losses: float64 [n], in nats, calibrated.
        logits: float64 [n, classes], calibrated; not used where the metric is the accuracy.
        labels: int64 [n]; likewise.
    """

    correct: np.ndarray
    log_losses: np.ndarray
    logits: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def score(self, metric: Metric) -> float:
        """Return the score of all images; higher is better."""
        return compute_score(metric, self.logits, self.labels)


@dataclass(frozen=True)
class Candidate:
    """A finalist's scores of the images, without the centre crop and, if it was tried, with it."""

    without_crop: ImageScores
    with_crop: ImageScores | None = None


@dataclass(frozen=True)
class CorrectedScore:
    """The chosen candidate's score and accuracy without the optimism of its choice.

    Attributes:
        score: Of the metric.
        score_ci95: Its 95% confidence interval: Wilson's of the accuracy, else by the standard
            error of the bootstrap.
        accuracy: The accuracy.
        accuracy_ci95: Wilson's interval.
    """

    score: float
    score_ci95: Interval
    accuracy: float
    accuracy_ci95: Interval


def choose_candidate(
    candidates: Sequence[Candidate],
    groups: np.ndarray | None = None,
    metric: Metric = "accuracy",
) -> int:
    """Return the index of the candidate with the highest score: by default, most correct images.

    Equals are ranked by log loss, then the one without the centre crop comes first, then the
    earlier in order.

    Args:
        candidates: At least one, the preferred first; scores of the same images.
        groups: int64 [n]; images of equal numbers are near-duplicates. None: there are none.
        metric: What they are compared by.
    """
    if metric != "accuracy":
        by_score = _ByScore(candidates, groups, metric)
        return int(by_score.choose(np.ones((1, by_score.n_images)))[0][0])
    sums = _sum_by_group(candidates, groups)
    chosen, _ = _choose(sums, np.ones((1, len(sums.sizes))))
    return int(chosen[0])


def center_crop_gain(
    candidate: Candidate, groups: np.ndarray | None = None, metric: Metric = "accuracy"
) -> tuple[float, float]:
    """Return by how much the centre crop raises the score, and its standard error.

    Where the metric is the accuracy, by how much it lowers the mean log loss, which tells more
    apart. The differences are paired by image; near-duplicates count as one observation. The
    branch is kept where the gain is above `MIN_GAIN_SE` standard errors.
    """
    without, with_crop = candidate.without_crop, candidate.with_crop or candidate.without_crop
    if metric != "accuracy":
        return score_difference(metric, with_crop.logits, without.logits, without.labels, groups)
    return mean_with_error(candidate.without_crop.log_losses - with_crop.log_losses, groups)


def correct_for_choice(
    candidates: Sequence[Candidate],
    groups: np.ndarray | None = None,
    metric: Metric = "accuracy",
    n_bootstraps: int | None = None,
) -> CorrectedScore:
    """Return the chosen candidate's score without the optimism of its choice (BBC-CV).

    See `corrected_accuracy`. By another metric each bootstrap sample likewise decides on the centre
    crop, by the standard error of all images, and chooses a candidate by its score; what is taken
    off is the mean, over the samples, of the score that the candidate chosen by all images has
    more on the images left out.

    Args:
        candidates: See `choose_candidate`.
        groups: The same.
        metric: The same.
        n_bootstraps: Number of samples; None is 1000 for the accuracy, else 200.
    """
    if metric != "accuracy":
        return _ByScore(candidates, groups, metric).corrected(n_bootstraps or 200)
    accuracy = corrected_accuracy(candidates, groups, n_bootstraps or 1000)
    n = len(candidates[0].without_crop.correct)
    ci95 = wilson_interval(accuracy * n, n)
    return CorrectedScore(accuracy, ci95, accuracy, ci95)


def corrected_accuracy(
    candidates: Sequence[Candidate],
    groups: np.ndarray | None = None,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> float:
    """Return the chosen candidate's accuracy without the optimism of its choice (BBC-CV).

    Each bootstrap sample decides on the centre crop and chooses a candidate, as all images do. On
    the images that it left out, the candidate that all images choose is compared with the sample's
    choice; the mean of what it has more is taken off its accuracy. In expectation that is the mean
    accuracy of the samples' choices on the images left out, without the noise of which these are.

    Args:
        candidates: See `choose_candidate`.
        groups: The same; a sample has all images of a group or none.
        n_bootstraps: Number of samples.
        seed: Seed of the samples.
    """
    sums = _sum_by_group(candidates, groups)
    n_groups = len(sums.sizes)
    (winner,), kept = _choose(sums, np.ones((1, n_groups)))
    n_correct_of_winner = sums.n_correct[int(kept[0, winner]), :, winner]
    n_more, n_left_out = 0.0, 0.0
    for counts in bootstrap_groups(n_groups, n_bootstraps, seed):
        chosen, kept = _choose(sums, counts)
        left_out = (counts == 0).astype(np.float64)
        n_correct = _total(sums.n_correct, left_out, kept)
        n_correct_of_chosen = np.take_along_axis(n_correct, chosen[:, None], axis=1)
        n_more += float((left_out @ n_correct_of_winner).sum() - n_correct_of_chosen.sum())
        n_left_out += float((left_out @ sums.sizes).sum())
    accuracy = float(n_correct_of_winner.sum() / sums.sizes.sum())
    return float(np.clip(accuracy - n_more / max(n_left_out, 1.0), 0.0, 1.0))


class _ByScore:
    """Candidates that are compared by a score which is no mean over images."""

    def __init__(
        self, candidates: Sequence[Candidate], groups: np.ndarray | None, metric: Metric
    ) -> None:
        self._metric, self._groups = metric, groups
        self._labels = candidates[0].without_crop.labels
        without = [one.without_crop for one in candidates]
        self._views = without, [one.with_crop or one.without_crop for one in candidates]
        errors = [center_crop_gain(one, groups, metric)[1] for one in candidates]
        self._min_gains = MIN_GAIN_SE * np.array(errors)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self._labels)

    def choose(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose a candidate by each sample of the images; see `_choose`."""
        scores = self._scores(self._metric, counts)
        kept = scores[1] - scores[0] > self._min_gains
        losses = -_pick(self._scores("log_loss", counts), kept).round(9)
        return np.lexsort((kept, losses, -_pick(scores, kept)), axis=1)[:, 0], kept

    def corrected(self, n_bootstraps: int) -> CorrectedScore:
        """Return the corrected score and accuracy; see `correct_for_choice`."""
        everything = np.ones((1, self.n_images))
        (winner,), by_all = self.choose(everything)
        metrics: tuple[Metric, Metric] = (self._metric, "accuracy")
        plain = [_pick(self._scores(one, everything), by_all)[0, winner] for one in metrics]
        more: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        of_winner = []
        for counts in bootstrap(self.n_images, self._groups, n_bootstraps):
            chosen, kept = self.choose(counts)
            of_winner.append(_pick(self._scores(self._metric, counts), by_all)[:, winner])
            has_rest = (counts == 0).any(1)
            left_out, place = (counts[has_rest] == 0).astype(np.float64), np.arange(has_rest.sum())
            for differences, one in zip(more, metrics, strict=True):
                scores = self._scores(one, left_out)
                by_sample = _pick(scores, kept[has_rest])[place, chosen[has_rest]]
                differences.append(_pick(scores, by_all)[:, winner] - by_sample)
        score, accuracy = (p - np.concatenate(m).mean() for p, m in zip(plain, more, strict=True))
        error = float(np.concatenate(of_winner).std(ddof=1))
        bounds, n = score_bounds(self._metric), self.n_images
        accuracy = float(np.clip(accuracy, 0.0, 1.0))
        return CorrectedScore(
            score=float(np.clip(score, *bounds)),
            score_ci95=normal_interval(score, error, bounds),
            accuracy=accuracy,
            accuracy_ci95=wilson_interval(accuracy * n, n),
        )

    def _scores(self, metric: Metric, counts: np.ndarray) -> np.ndarray:
        """Score the candidates without the centre crop and with it: [2, samples, candidates]."""
        scores = [
            [resample_scores(metric, one.logits, self._labels, counts) for one in view]
            for view in self._views
        ]
        return np.array(scores).swapaxes(1, 2)


def _pick(scores: np.ndarray, with_crop: np.ndarray) -> np.ndarray:
    """Return the scores with the centre crop or without: [samples, candidates]."""
    return np.asarray(np.where(with_crop, scores[1], scores[0]))


@dataclass(frozen=True)
class _Sums:
    """The candidates' scores, summed by group.

    Attributes:
        sizes: float64 [groups], images.
        n_correct: float64 [2, groups, candidates], without the centre crop and with it; the same
            twice where it was not tried.
        log_loss: float64 [2, groups, candidates], likewise.
    """

    sizes: np.ndarray
    n_correct: np.ndarray
    log_loss: np.ndarray


def _sum_by_group(candidates: Sequence[Candidate], groups: np.ndarray | None) -> _Sums:
    n = len(candidates[0].without_crop.correct)
    _, group_of = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    both = (
        [one.without_crop for one in candidates],
        [one.with_crop or one.without_crop for one in candidates],
    )

    def by_group(name: str) -> np.ndarray:
        sums = [[np.bincount(group_of, getattr(s, name)) for s in scores] for scores in both]
        return np.array(sums).swapaxes(1, 2)

    sizes = np.bincount(group_of).astype(np.float64)
    return _Sums(sizes, by_group("correct"), by_group("log_losses"))


def _total(sums: np.ndarray, counts: np.ndarray, with_crop: np.ndarray) -> np.ndarray:
    """Sum over a sample's groups, with the centre crop or without: [samples, candidates]."""
    if not with_crop.any():
        return np.asarray(counts @ sums[0])
    return np.asarray(np.where(with_crop, counts @ sums[1], counts @ sums[0]))


def _crop_gains(sums: _Sums, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `center_crop_gain` does, for many samples at once: [samples, candidates] each.

    Args:
        sums: The candidates.
        counts: float64 [samples, groups], how often a sample has a group.
    """
    gains, sizes = sums.log_loss[0] - sums.log_loss[1], sums.sizes[:, None]
    n_drawn, n_images = counts.sum(axis=1, keepdims=True), counts @ sizes
    mean = counts @ gains / n_images
    # The sum over groups of (gain - mean * size) ** 2.
    squares = (
        counts @ gains**2 - 2 * mean * (counts @ (gains * sizes)) + mean**2 * (counts @ sizes**2)
    )
    variance = np.maximum(squares, 0) / n_images**2 * n_drawn / np.maximum(n_drawn - 1, 1)
    return mean, np.where(n_drawn > 1, np.sqrt(variance), np.inf)


def _keeps_crop(sums: _Sums, counts: np.ndarray) -> np.ndarray:
    """Apply the centre crop's rule to samples: bool [samples, candidates]."""
    if np.array_equal(*sums.log_loss):
        return np.zeros((len(counts), sums.log_loss.shape[2]), bool)
    gain, standard_error = _crop_gains(sums, counts)
    return np.asarray(gain > MIN_GAIN_SE * standard_error)


def _choose(sums: _Sums, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose a candidate by each sample.

    Returns:
        int64 [samples], indices of candidates; and bool [samples, candidates], whether each would
        have the centre crop.
    """
    kept = _keeps_crop(sums, counts)
    n_correct = _total(sums.n_correct, counts, kept)
    # Rounded, as sums in another order differ in their last digits.
    log_loss = _total(sums.log_loss, counts, kept).round(9)
    return np.lexsort((kept, log_loss, -n_correct), axis=1)[:, 0], kept
