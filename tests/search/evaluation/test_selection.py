"""Which finalist is chosen, and what its accuracy is worth after the choice."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from search.evaluation.intervals import score_difference, wilson_interval
from search.evaluation.selection import (
    MIN_GAIN_SE,
    Candidate,
    ImageScores,
    center_crop_gain,
    choose_candidate,
    correct_for_choice,
    corrected_accuracy,
)
from spaces.rules import Metric

N = 200


def scores(n_correct: int, log_loss: float = 0.5, n: int = N) -> ImageScores:
    return ImageScores(np.arange(n) < n_correct, np.full(n, log_loss))


def crops(gains: np.ndarray) -> Candidate:
    """Return a candidate whose centre crop lowers each image's log loss by these."""
    correct = np.ones(len(gains), bool)
    plain = np.linspace(1, 2, len(gains))
    return Candidate(ImageScores(correct, plain), ImageScores(correct, plain - gains))


def test_the_most_correct_images_win() -> None:
    some = [Candidate(scores(n, loss)) for n, loss in ((180, 0.1), (182, 0.9), (181, 0.2))]
    assert choose_candidate(some) == 1


def test_equals_go_to_the_lower_log_loss_and_then_to_the_cheaper() -> None:
    some = [Candidate(scores(180, loss)) for loss in (0.3, 0.2, 0.2)]
    assert choose_candidate(some) == 1


def test_an_equal_without_centre_crop_is_cheaper() -> None:
    without = scores(180, 0.2)
    rng = np.random.default_rng(0)
    better = Candidate(
        ImageScores(without.correct, without.log_losses + rng.uniform(0.1, 0.2, N)), without
    )
    assert choose_candidate([better, Candidate(without)]) == 1
    assert choose_candidate([better, Candidate(scores(179, 0.2))]) == 0


def test_the_gain_of_the_centre_crop_has_the_paired_standard_error() -> None:
    gains = np.random.default_rng(1).normal(0.01, 0.1, N)
    gain, standard_error = center_crop_gain(crops(gains))
    assert gain == pytest.approx(gains.mean())
    assert standard_error == pytest.approx(gains.std(ddof=1) / N**0.5)


def test_near_duplicates_are_one_observation_of_the_gain() -> None:
    gains = np.random.default_rng(1).normal(0.01, 0.1, N)
    once = center_crop_gain(crops(gains))
    groups = np.repeat(np.arange(N), 3)
    assert center_crop_gain(crops(np.repeat(gains, 3)), groups) == pytest.approx(once)


def test_one_group_has_no_standard_error() -> None:
    assert center_crop_gain(crops(np.ones(3)), np.zeros(3))[1] == np.inf


@pytest.mark.parametrize(("factor", "accuracy"), [(0.9, 0.5), (1.1, 0.9)])
def test_a_clear_gain_decides_for_the_centre_crop(factor: float, accuracy: float) -> None:
    gains = np.tile([1.0, -1.0], N // 2)
    gains += factor * MIN_GAIN_SE * gains.std(ddof=1) / N**0.5
    losses = np.full(N, 2.0)
    half, most = (np.arange(N) < f * N for f in (0.5, 0.9))
    candidate = Candidate(ImageScores(half, losses), ImageScores(most, losses - gains))
    other = Candidate(scores(int(0.7 * N)))
    assert choose_candidate([candidate, other]) == (0 if accuracy == 0.9 else 1)


def test_one_candidate_has_its_plain_accuracy() -> None:
    assert corrected_accuracy([Candidate(scores(180))]) == pytest.approx(0.9)


def test_candidates_of_equal_predictions_have_their_plain_accuracy() -> None:
    assert corrected_accuracy([Candidate(scores(180))] * 5) == pytest.approx(0.9)


def noise(n: int, k: int, rng: np.random.Generator) -> list[Candidate]:
    """Draw candidates that are correct by chance, each on nine images of ten."""
    return [
        Candidate(ImageScores(rng.uniform(size=n) < 0.9, rng.uniform(size=n))) for _ in range(k)
    ]


def test_the_best_of_equals_is_optimistic_and_its_corrected_accuracy_is_not() -> None:
    rng = np.random.default_rng(0)
    plain, corrected = [], []
    for seed in range(150):
        candidates = noise(100, 6, rng)
        chosen = choose_candidate(candidates)
        plain.append(candidates[chosen].without_crop.correct.mean())
        corrected.append(corrected_accuracy(candidates, n_bootstraps=100, seed=seed))
    assert np.mean(plain) > 0.93
    assert np.mean(corrected) == pytest.approx(0.9, abs=0.008)  # three standard errors


def test_near_duplicates_are_drawn_together() -> None:
    """Six copies of each of 30 images are as optimistic as 30 images, and not as 180."""
    rng = np.random.default_rng(0)
    lost = {"grouped": 0.0, "single": 0.0}
    groups = np.repeat(np.arange(30), 6)
    for seed in range(20):
        single = noise(30, 4, rng)
        copied = [
            Candidate(
                ImageScores(one.without_crop.correct[groups], one.without_crop.log_losses[groups])
            )
            for one in single
        ]
        of_30 = corrected_accuracy(single, n_bootstraps=100, seed=seed)
        of_groups = corrected_accuracy(copied, groups, n_bootstraps=100, seed=seed)
        assert of_groups == pytest.approx(of_30)
        best = copied[choose_candidate(copied)].without_crop.correct.mean()
        for name, numbers in (("grouped", groups), ("single", None)):
            lost[name] += best - corrected_accuracy(copied, numbers, n_bootstraps=100, seed=seed)
    assert lost["grouped"] > 2 * lost["single"] > 0


def test_each_near_duplicate_is_an_image_of_the_accuracy() -> None:
    """A group is drawn as one, and its images count as many: 40 of 50, not one group of two."""
    correct = np.arange(50) < 40
    groups = np.where(correct, 0, np.arange(50))
    candidate = Candidate(ImageScores(correct, np.ones(50)))
    assert corrected_accuracy([candidate], groups) == pytest.approx(0.8)


def test_a_choice_that_no_sample_changes_costs_nothing() -> None:
    clear = [Candidate(scores(n)) for n in (100, 196, 120)]
    assert corrected_accuracy(clear) == pytest.approx(0.98)


def test_the_centre_crop_is_a_choice_too() -> None:
    """A crop that helps by chance is kept by some samples only: its accuracy is corrected."""
    rng = np.random.default_rng(3)
    plain = ImageScores(rng.uniform(size=100) < 0.9, rng.uniform(size=100))
    gains = rng.normal(size=100)
    gains += 1.05 * MIN_GAIN_SE * gains.std(ddof=1) / 10 - gains.mean()
    correct = plain.correct.copy()
    correct[np.flatnonzero(~correct)[:4]] = True
    candidate = Candidate(plain, ImageScores(correct, plain.log_losses - gains))
    assert plain.correct.mean() < corrected_accuracy([candidate]) < correct.mean() - 0.005


# Other metrics than the accuracy

LABELS = np.repeat([0, 1], [160, 40])
"""Imbalanced: one image of five is of the second class."""
OTHERS: tuple[Metric, ...] = ("balanced_accuracy", "macro_f1", "log_loss", "roc_auc")


def of_logits(logits: np.ndarray) -> ImageScores:
    losses = -log_softmax(logits, axis=1)[np.arange(N), LABELS]
    return ImageScores(logits.argmax(1) == LABELS, losses, logits, LABELS)


def common() -> ImageScores:
    """Predict the common class alone, with the same probability for all images."""
    return of_logits(np.tile([6.0, 0.0], (N, 1)))


def fair(wrong: int = 50) -> ImageScores:
    """Predict both classes; so many images wrongly, of both alike."""
    is_wrong = np.arange(N) * wrong // N != np.arange(1, N + 1) * wrong // N
    return of_logits(2 * np.eye(2)[np.where(is_wrong, 1 - LABELS, LABELS)])


@pytest.mark.parametrize("metric", OTHERS)
def test_the_metric_rules_the_choice(metric: Metric) -> None:
    some = [Candidate(common()), Candidate(fair(60)), Candidate(fair(50))]
    assert choose_candidate(some) == 0
    assert choose_candidate(some, metric=metric) == 2


def test_equal_scores_go_to_the_lower_log_loss_and_then_to_the_cheaper() -> None:
    low = of_logits(0.6 * fair().logits)
    assert low.log_losses.mean() < fair().log_losses.mean()
    some = [Candidate(one) for one in (fair(), low, low)]
    assert choose_candidate(some, metric="macro_f1") == 1


@pytest.mark.parametrize("metric", OTHERS)
def test_the_metric_decides_on_the_centre_crop(metric: Metric) -> None:
    gain, standard_error = center_crop_gain(Candidate(common(), fair()), metric=metric)
    assert gain == fair().score(metric) - common().score(metric)
    assert gain > 2 * standard_error > 0
    other = Candidate(fair(55))
    assert choose_candidate([other, Candidate(common(), fair())], metric=metric) == 1
    assert choose_candidate([other, Candidate(common())], metric=metric) == 0
    # What makes no difference is not kept.
    assert center_crop_gain(Candidate(fair(), fair()), metric=metric) == (0.0, 0.0)


@pytest.mark.parametrize("metric", OTHERS)
def test_one_candidate_has_its_plain_score(metric: Metric) -> None:
    corrected = correct_for_choice([Candidate(fair())], metric=metric)
    assert corrected.score == pytest.approx(fair().score(metric))
    assert corrected.accuracy == 0.75
    low, high = corrected.score_ci95
    assert low < corrected.score < high
    _, standard_error = score_difference(metric, fair().logits, common().logits, LABELS)
    if metric in ("balanced_accuracy", "roc_auc"):  # of `common` these are the same in all samples
        assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.2)


@pytest.mark.parametrize("metric", ["macro_f1", "roc_auc"])
def test_a_score_is_corrected_for_the_choice(metric: Metric) -> None:
    """The best of six that know equally much is no better than they all are."""
    rng = np.random.default_rng(0)
    plain, best, corrected = [], [], []
    for _ in range(12):
        drawn = [of_logits(rng.normal(size=(N, 2)) + np.eye(2)[LABELS]) for _ in range(6)]
        candidates = [Candidate(one) for one in drawn]
        plain.append(np.mean([one.score(metric) for one in drawn]))
        best.append(max(one.score(metric) for one in drawn))
        result = correct_for_choice(candidates, metric=metric, n_bootstraps=40)
        corrected.append(result.score)
        assert result.accuracy < 1
    assert np.mean(best) > np.mean(plain) + 0.03
    assert np.mean(corrected) == pytest.approx(np.mean(plain), abs=0.015)


def test_the_accuracy_has_its_own_correction() -> None:
    candidates = noise(100, 6, np.random.default_rng(0))
    corrected = correct_for_choice(candidates)
    assert corrected.score == corrected.accuracy == corrected_accuracy(candidates)
    assert corrected.score_ci95 == wilson_interval(100 * corrected.accuracy, 100)
