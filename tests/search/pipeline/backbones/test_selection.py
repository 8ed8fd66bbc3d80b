"""Which backbones leave the search, by the correctness of their probes image by image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from search.evaluation import calibration
from search.evaluation.intervals import mean_with_error
from search.pipeline.backbones.selection import RankedProbe, narrow_space, select_backbones
from search.runs.summary import ProbeScore
from spaces.base import Space
from spaces.rules import Metric
from spaces.sources import digits
from trainables.metrics import compute_score

N = 200
GROUPS = np.arange(N)
LABELS = np.zeros(N, np.int64)
IMAGES: tuple[Metric, np.ndarray, np.ndarray] = ("accuracy", LABELS, GROUPS)
ALL_THE_TIME = math.inf


def probe(
    name: str,
    is_correct: np.ndarray,
    image_seconds: float = 0.01,
    latency_ms: float = 10.0,
    log_losses: np.ndarray | None = None,
) -> RankedProbe:
    """Return a probe; without log losses, one whose losses tell nothing."""
    accuracy = float(is_correct.mean()) if len(is_correct) else math.nan
    losses = np.full(len(is_correct), 0.4) if log_losses is None else log_losses
    logits = np.empty((len(is_correct), 2))  # of no use where the metric is the accuracy
    accuracies = accuracy, accuracy, 0.5
    return RankedProbe(
        name, *accuracies, logits, is_correct, losses, 1.0, image_seconds, latency_ms
    )


def wrong_at(*ranges: range) -> np.ndarray:
    is_correct = np.ones(N, bool)
    for numbers in ranges:
        is_correct[list(numbers)] = False
    return is_correct


BEST = probe("best", wrong_at(range(10)))


def excluded(*probes: RankedProbe, groups: np.ndarray = GROUPS) -> dict[str, str | None]:
    scores = select_backbones(probes, "accuracy", LABELS, groups, 100, ALL_THE_TIME)
    return {name: score.excluded for name, score in scores.items()}


def test_one_that_is_behind_by_more_than_two_paired_errors_leaves() -> None:
    # 4 images, all lost and none gained, are 2.01 standard errors of the 200; 3 are 1.74.
    close, behind = (probe(f"{n} more", wrong_at(range(10 + n))) for n in (3, 4))
    reasons = excluded(close, BEST, behind)
    assert list(reasons) == ["best", "3 more", "4 more"]
    assert reasons["best"] is reasons["3 more"] is None
    assert reasons["4 more"] == (
        "2.0 points behind best, more than 2 paired standard errors of 1.0"
    )


def test_one_whose_log_loss_is_clearly_higher_leaves_too() -> None:
    """Also where the accuracies cannot tell them apart."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(0.4, N)
    noise = rng.normal(0.0, 0.1, N)
    noise -= noise.mean()
    best = probe("best", BEST.is_correct, log_losses=losses)
    close, behind = (
        probe(f"{n} errors", wrong_at(range(11)), log_losses=losses + noise + n * 0.1 / N**0.5)
        for n in (1.9, 2.1)
    )
    reasons = excluded(best, close, behind)
    assert reasons["1.9 errors"] is None
    assert reasons["2.1 errors"] == (
        "its log loss is 0.015 above that of best, more than 2 paired standard errors of 0.007"
    )
    scores = select_backbones([behind, best], *IMAGES, 100, ALL_THE_TIME)
    assert scores["best"].log_loss == pytest.approx(losses.mean())
    # One that is less accurate does not drive out the best by its log loss.
    assert (
        excluded(probe("surer", wrong_at(range(12)), log_losses=losses / 9), best)["best"] is None
    )


def test_of_equal_accuracies_the_lower_log_loss_is_the_best() -> None:
    less = probe("less", BEST.is_correct, log_losses=np.full(N, 0.3), latency_ms=99.0)
    assert list(excluded(BEST, less)) == ["less", "best"]


def test_differences_are_paired_by_image() -> None:
    """As many errors as above, but of other images: then the two hardly differ."""
    elsewhere = probe("elsewhere", wrong_at(range(100, 114)))
    assert excluded(BEST, elsewhere)["elsewhere"] is None


def test_near_duplicates_count_once() -> None:
    behind = probe("behind", wrong_at(range(14)))
    groups = GROUPS.copy()
    groups[10:14] = 10  # the four images that only the best one predicts
    assert excluded(BEST, behind)["behind"] is not None
    assert excluded(BEST, behind, groups=groups)["behind"] is None


def test_figures_are_those_of_the_paired_difference() -> None:
    other = probe("other", wrong_at(range(5, 25)), latency_ms=3.0)
    score = select_backbones([other, BEST], *IMAGES, 100, ALL_THE_TIME)["other"]
    difference = BEST.is_correct.astype(float) - other.is_correct
    assert (score.behind, score.behind_se) == mean_with_error(difference, GROUPS)
    assert score.behind == pytest.approx(BEST.accuracy - other.accuracy)
    assert (score.accuracy, score.val_accuracy) == (other.accuracy, 0.5)
    assert (score.seconds, score.latency_ms) == (1.0, 3.0)


def test_of_equals_the_faster_is_the_best() -> None:
    slow, fast = (probe(f"{ms:g} ms", BEST.is_correct, latency_ms=ms) for ms in (20.0, 5.0))
    assert list(excluded(slow, fast)) == ["5 ms", "20 ms"]
    assert set(excluded(slow, fast).values()) == {None}


def test_caches_that_take_too_long_are_not_built_but_for_the_best() -> None:
    second, third = (
        probe(name, wrong_at(range(n)), seconds)
        for name, n, seconds in (("second", 11, 0.2), ("third", 12, 0.05))
    )
    best = probe("best", BEST.is_correct, image_seconds=0.1)
    scores = select_backbones(
        [third, second, best], "accuracy", LABELS, GROUPS, 100, cache_seconds=16.0
    )
    assert [name for name, score in scores.items() if score.excluded is None] == ["best", "third"]
    assert scores["second"].excluded == (
        "its feature cache would take 20 s, and 6.0 s are left of what caches may take of the time"
        " budget"
    )
    alone = select_backbones(
        [third, second, best], "accuracy", LABELS, GROUPS, 100, cache_seconds=1.0
    )
    assert [name for name, score in alone.items() if score.excluded is None] == ["best"]


def test_where_nothing_can_be_cross_validated_all_stay() -> None:
    unknown = [probe(name, np.empty(0, bool)) for name in "ab"]
    assert excluded(*unknown) == {"a": None, "b": None}


def of_logits(name: str, logits: np.ndarray, labels: np.ndarray, metric: Metric) -> RankedProbe:
    losses = calibration.log_losses(logits, labels, 1.0)
    return replace(
        probe(name, logits.argmax(1) == labels, log_losses=losses),
        score=compute_score(metric, logits, labels),
        logits=logits,
    )


@pytest.mark.parametrize(
    ("metric", "order", "reason"),
    [
        ("accuracy", ["common", "fair"], "7.0 points behind common, more than 2"),
        ("balanced_accuracy", ["fair", "common"], "its balanced accuracy is 3"),
        ("macro_f1", ["fair", "common"], "its macro F1 is "),
        ("log_loss", ["fair", "common"], "its log loss is 0."),
        ("roc_auc", ["fair", "common"], "its ROC AUC is 0."),
    ],
)
def test_the_metric_rules_the_order_and_who_leaves(
    metric: Metric, order: list[str], reason: str
) -> None:
    """One probe predicts the common class alone; the other finds the rare one, too."""
    labels = np.repeat([0, 1], [180, 20])
    predicted = np.where(np.arange(N) % 6 == 1, 1 - labels, labels)
    of = {"fair": np.eye(2)[predicted] * 2, "common": np.tile([9.0, 0.0], (N, 1))}
    probes = [of_logits(name, logits, labels, metric) for name, logits in of.items()]
    scores = select_backbones(probes, metric, labels, GROUPS, 100, ALL_THE_TIME)
    assert list(scores) == order
    best, behind = scores.values()
    assert (best.excluded, best.behind) == (None, 0.0)
    assert str(behind.excluded).startswith(reason)
    assert behind.behind == pytest.approx(best.score - behind.score)
    assert behind.score == compute_score(metric, of[order[1]], labels)


SPACE = Space(
    source=digits(),
    params={"backbone": "tinynet", "freeze_depth": 5},
).with_backbones(["cnn", "tinynet", "resnet18"])


def test_a_narrow_space_has_those_that_stay_in_its_own_order() -> None:
    scores = {
        "resnet18": ProbeScore(accuracy=0.9),
        "cnn": ProbeScore(accuracy=0.8),
        "tinynet": ProbeScore(accuracy=0.1, excluded="far behind"),
    }
    assert narrow_space(SPACE, scores).backbones == ("cnn", "resnet18")


def test_a_space_without_excluded_backbones_is_unchanged() -> None:
    """So that its trials are the same as without a ranking."""
    scores = {name: ProbeScore(accuracy=0.9) for name in ("resnet18", "tinynet", "cnn")}
    kept = narrow_space(SPACE, scores)
    assert (kept.backbones, kept.first_trials) == (SPACE.backbones, SPACE.first_trials)
    assert narrow_space(SPACE, {}) is SPACE
    fixed = replace(SPACE, params={**SPACE.params, "backbone": "tinynet"}, first_trials=())
    assert narrow_space(fixed, {"tinynet": ProbeScore(accuracy=0.9)}) is fixed
    space = replace(SPACE, params={**SPACE.params, "lr": 1e-3}, first_trials=({"lr": 1e-3},))
    (first,) = narrow_space(space, scores).first_trials
    assert first == {"lr": 1e-3, "backbone": "resnet18"}, "the best"


def test_a_backbone_that_is_not_probed_stays() -> None:
    scores = {"resnet18": ProbeScore(accuracy=0.9), "tinynet": ProbeScore(excluded="behind")}
    assert narrow_space(SPACE, scores).backbones == ("cnn", "resnet18")
    # Of a portfolio whose scores an earlier session recorded, nothing is new.
    assert narrow_space(SPACE, scores, all_scored=True).backbones == ("resnet18",)


def test_the_best_takes_the_place_of_an_excluded_baseline() -> None:
    first = ({"backbone": "tinynet", "freeze_depth": 5}, {"backbone": "cnn", "freeze_depth": 5})
    params = {**SPACE.params, "freeze_depth": 5}
    space = Space(source=digits(), params=params, first_trials=first)
    assert space.backbones[0] == "cnn", "not the best one"
    scores = {
        "resnet18": ProbeScore(accuracy=0.9),
        "cnn": ProbeScore(accuracy=0.8),
        "tinynet": ProbeScore(accuracy=0.1, excluded="far behind"),
    }
    assert [one["backbone"] for one in narrow_space(space, scores).first_trials] == [
        "resnet18",
        "cnn",
    ]
