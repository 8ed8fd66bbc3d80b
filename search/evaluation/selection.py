"""Choose a finalist by out-of-fold predictions, and correct its accuracy for having been chosen.

The best of several accuracies on the same images is optimistic. BBC-CV (Tsamardinos, Greasidou and
Borboudakis 2018, Machine Learning 107) repeats the choice on bootstrap samples of the images, and
scores each on the images that its sample left out. No model is trained again.
`benchmarks.models.selection_bias` simulates what it corrects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from search.evaluation.intervals import mean_with_error

MIN_GAIN_SE = 1.0
"""Standard errors by which the centre crop has to lower the log loss (docs/design.md)."""

_MAX_VALUES = 4_000_000  # counts of one batch of bootstrap samples


@dataclass(frozen=True)
class ImageScores:
    """Out-of-fold scores of one model, image by image.

    Attributes:
        correct: bool [n], whether the predicted class is the label.
        log_losses: float64 [n], in nats, calibrated.
    """

    correct: np.ndarray
    log_losses: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A finalist's scores of the images, without the centre crop and, if it was tried, with it."""

    without_crop: ImageScores
    with_crop: ImageScores | None = None


def choose_candidate(candidates: Sequence[Candidate], groups: np.ndarray | None = None) -> int:
    """Return the index of the candidate with the most correct images.

    Equals are ranked by log loss, then the one without the centre crop comes first, then the
    earlier in order.

    Args:
        candidates: At least one, the preferred first; scores of the same images.
        groups: int64 [n]; images of equal numbers are near-duplicates. None: there are none.
    """
    sums = _sum_by_group(candidates, groups)
    chosen, _ = _choose(sums, np.ones((1, len(sums.sizes))))
    return int(chosen[0])


def center_crop_gain(candidate: Candidate, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return by how much the centre crop lowers the mean log loss, and its standard error.

    The differences are paired by image; near-duplicates count as one observation. The branch is
    kept where the gain is above `MIN_GAIN_SE` standard errors.
    """
    with_crop = candidate.with_crop or candidate.without_crop
    return mean_with_error(candidate.without_crop.log_losses - with_crop.log_losses, groups)


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
    for counts in _bootstrap(n_groups, n_bootstraps, seed):
        chosen, kept = _choose(sums, counts)
        left_out = (counts == 0).astype(np.float64)
        n_correct = _total(sums.n_correct, left_out, kept)
        n_correct_of_chosen = np.take_along_axis(n_correct, chosen[:, None], axis=1)
        n_more += float((left_out @ n_correct_of_winner).sum() - n_correct_of_chosen.sum())
        n_left_out += float((left_out @ sums.sizes).sum())
    accuracy = float(n_correct_of_winner.sum() / sums.sizes.sum())
    return float(np.clip(accuracy - n_more / max(n_left_out, 1.0), 0.0, 1.0))


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


def _bootstrap(n_groups: int, n_bootstraps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield bootstrap samples in batches: float64 [samples, groups], how often each was drawn."""
    rng = np.random.default_rng(seed)
    batch_size = max(1, _MAX_VALUES // n_groups)
    for start in range(0, n_bootstraps, batch_size):
        n_samples = min(batch_size, n_bootstraps - start)
        drawn = rng.integers(n_groups, size=(n_samples, n_groups))
        drawn += n_groups * np.arange(n_samples)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n_samples * n_groups)
        yield counts.reshape(n_samples, n_groups).astype(np.float64)
