"""Which finalist wins, by the known predictions of its folds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from search.console.progress import Progress
from search.evaluation.calibration import fit_temperature
from search.evaluation.intervals import wilson_interval
from search.evaluation.selection import Candidate, corrected_accuracy
from search.pipeline.finalists import Finalist
from search.pipeline.retraining import retrain
from search.pipeline.retraining.cross_validation import (
    CrossValidation,
    choose_winner,
    possible_parts,
)
from search.pipeline.retraining.ensemble_selection import select_finalists
from search.pipeline.retraining.kfold import Fold, FoldError, RetrainConfig
from search.pipeline.retraining.out_of_fold import score_images
from search.pipeline.retraining.retrain import Retrained
from search.runs.run_folder import RunFolder
from spaces.base import Space, TrialConfig
from spaces.rules import Metric
from spaces.sources import digits
from tests.fixtures.prepared_data import prepared_data

N_CLASSES = 3
LABELS = np.arange(60) % N_CLASSES


def validated(
    trial: int | None,
    wrong: int,
    margin: float = 3.0,
    freeze_depth: int = 5,
    wrong_class: int = 0,
    also_wrong: Sequence[int] = (),
) -> CrossValidation:
    """Return a finalist whose first `wrong` images of a class are predicted as the next class."""
    of_class = np.equal(LABELS, wrong_class)
    is_wrong = of_class & (np.cumsum(of_class) <= wrong)
    is_wrong[list(also_wrong)] = True
    predicted = np.where(is_wrong, (LABELS + 1) % N_CLASSES, LABELS)
    logits = (margin * np.eye(N_CLASSES)[predicted]).astype(np.float32)
    folds = [
        Fold(
            rows,
            logits[rows],
            np.zeros(len(rows)),
            float((logits[rows].argmax(1) == LABELS[rows]).mean()),
            {},
            {},
            1.0,
            "",
        )
        for rows in np.split(np.arange(60), [13, 40])
    ]
    config = TrialConfig("tinynet", freeze_depth=freeze_depth)
    finalist = Finalist(trial, RetrainConfig(config, 1, 1), 0.9)
    return CrossValidation(finalist, folds, Candidate(score_images(folds, LABELS)))


def unsure_where_wrong(one: CrossValidation) -> CrossValidation:
    """Lower the confidence of a finalist's mistakes."""
    folds = []
    for fold in one.members:
        is_wrong = fold.logits.argmax(1) != LABELS[fold.rows]
        folds.append(replace(fold, logits=np.where(is_wrong[:, None], 0.1, 1.0) * fold.logits))
    return CrossValidation(one.finalist, folds, Candidate(score_images(folds, LABELS)))


def with_losses(one: CrossValidation, seed: int) -> CrossValidation:
    """Give a finalist other log losses; a higher seed has higher ones."""
    scores = one.candidate.without_crop
    return replace(one, candidate=Candidate(replace(scores, log_losses=scores.log_losses + seed)))


def test_the_mean_accuracy_is_weighted_by_the_images_of_each_fold() -> None:
    one = validated(0, wrong=3)
    assert one.mean == 57 / 60
    assert one.mean != pytest.approx(np.mean([fold.accuracy for fold in one.folds]))


def test_the_most_accurate_finalist_wins() -> None:
    best = validated(7, wrong=1, freeze_depth=0)
    assert choose_winner([validated(None, wrong=3), best, validated(2, wrong=2)]) is best


def test_equals_go_to_the_lower_log_loss() -> None:
    cheap, low = with_losses(validated(None, wrong=2), 2), with_losses(validated(9, wrong=2), 1)
    assert choose_winner([cheap, low]) is low
    assert choose_winner([low, cheap]) is low


def test_equal_losses_go_to_fewer_trainable_stages_then_the_probe_then_the_lower_number() -> None:
    probe, two, three = (validated(trial, wrong=2) for trial in (None, 2, 3))
    deep = validated(0, wrong=2, freeze_depth=3)
    assert choose_winner([deep, three, two, probe]) is probe
    assert choose_winner([deep, three, two]) is two
    assert choose_winner([deep, three]) is three


def test_the_log_loss_of_a_tie_is_calibrated() -> None:
    """A margin that one temperature undoes makes no difference."""
    sharp, blunt = validated(1, wrong=2, margin=9.0), validated(0, wrong=2, margin=1.0)
    losses = [one.candidate.without_crop.log_losses.mean() for one in (sharp, blunt)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    logits = np.concatenate([fold.logits for fold in sharp.folds])
    assert fit_temperature(logits, LABELS) > 2


def retrain_known(
    results: dict[int, CrossValidation],
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    groups: np.ndarray | None = None,
    n_finalists: int | None = None,
    failing: Collection[int] = (),
    metric: Metric = "accuracy",
    max_latency_ms: float | None = None,
) -> Retrained:
    """Run the stage without training: the folds of each trial and their predictions are known.

    198 test images follow the ones of the folds.
    """

    def known_folds(*given: Any) -> list[Fold]:
        if given[2].trial in failing:
            raise FoldError("fold 1 cannot be trained: ValueError: one value per channel")
        return results[given[2].trial].members

    monkeypatch.setattr(retrain, "_retrain", known_folds)
    monkeypatch.setattr(retrain, "_as_ensemble", lambda *_: SimpleNamespace())
    monkeypatch.setattr(retrain, "join", lambda parts, weights: SimpleNamespace(weights=weights))
    monkeypatch.setattr(retrain, "save_model", lambda *_: None)
    monkeypatch.setattr(retrain, "write_out_of_fold", lambda *_: None)
    monkeypatch.setattr(retrain, "fit_ood", lambda _: None)
    labels = np.concatenate([LABELS, np.zeros(198, np.int64)])
    prepared = prepared_data(
        Space(source=digits(), params={"backbone": "tinynet"}, folds=3, metric=metric),
        np.zeros((len(labels), 2, 2, 3), np.uint8),
        labels.tolist(),
        ("ant", "bee", "cow"),
        ["train"] * len(LABELS) + ["test"] * 198,
    )
    if groups is not None:
        test_groups = groups.max() + 1 + np.arange(198)
        prepared = replace(prepared, groups=np.concatenate([groups, test_groups]))
    return retrain.retrain_finalists(
        prepared,
        prepared.training_context({}, None),  # type: ignore[arg-type]
        [result.finalist for result in results.values()][:n_finalists],
        False,
        {"tinynet": 0.0},
        folder,
        Progress(),
        [result.finalist for result in results.values()],
        max_latency_ms=max_latency_ms,
    )


def test_the_metric_rules_the_winner_and_stands_beside_the_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accurate, unsure = validated(0, wrong=4), unsure_where_wrong(validated(1, wrong=5))
    assert choose_winner([accurate, unsure]) is accurate
    folder = RunFolder(tmp_path)
    retrained = retrain_known({0: accurate, 1: unsure}, folder, monkeypatch, metric="log_loss")
    assert retrained.winner.finalist.trial == 1
    kfold = folder.summary.kfold
    assert kfold is not None
    assert kfold.accuracy_mean == 55 / 60
    logits = unsure.candidate.without_crop.logits
    expected = log_softmax(logits, axis=1)[np.arange(60), LABELS].mean()
    assert kfold.score == pytest.approx(expected)
    assert [one.score for one in kfold.finalists] == [accurate.score("log_loss"), kfold.score]
    low, high = kfold.score_corrected_ci95
    assert low < kfold.score_corrected < high < 0


def test_the_accuracy_is_corrected_for_the_choice_among_all_finalists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each two images of a class are near-duplicates; a sample has both or none."""
    results = {trial: validated(trial, 6, wrong_class=trial) for trial in (0, 1)}
    groups, folder = np.arange(60) // 6 * N_CLASSES + LABELS, RunFolder(tmp_path)
    retrain_known(results, folder, monkeypatch, groups)
    kfold = folder.summary.kfold
    assert kfold is not None
    assert kfold.accuracy_mean == 0.9
    candidates = [result.candidate for result in results.values()]
    corrected = corrected_accuracy(candidates, groups)
    assert kfold.accuracy_corrected == kfold.score_corrected == corrected
    assert kfold.score_corrected_ci95 == kfold.accuracy_corrected_ci95
    assert kfold.score == kfold.accuracy_mean
    assert corrected not in (0.9, corrected_accuracy(candidates)), "it would show nothing"


def with_folds(one: CrossValidation, n: int) -> CrossValidation:
    """Return a finalist that there was time for n of the folds of."""
    return replace(one, members=one.members[:n])


def test_finalists_are_compared_on_the_folds_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its first fold trial 7 is better; on all of them trial 3 has fewer errors in all."""
    # The first fold has 13 images; a class has five of them there.
    results = {7: with_folds(validated(7, wrong=1), 1), 3: validated(3, wrong=3)}
    folder = RunFolder(tmp_path)
    retrained = retrain_known(results, folder, monkeypatch)
    assert retrained.winner.finalist.trial == 7
    kfold = folder.summary.kfold
    assert kfold is not None
    assert (kfold.folds, kfold.accuracy_mean, kfold.accuracy_std) == (1, 12 / 13, 0.0)
    assert {one.trial: one.accuracy_mean for one in kfold.finalists} == {7: 12 / 13, 3: 57 / 60}
    # Errors of the later folds count for nothing.
    later = validated(5, wrong=5)  # the fifth image of the class is in the first fold, too
    others = {3: validated(3, wrong=4), 5: with_folds(later, 2)}
    winner = retrain_known(others, RunFolder(tmp_path / "other"), monkeypatch).winner
    assert winner.finalist.trial == 3
    assert len(winner.members) == 3, "the model has all of its folds"


def test_the_interval_is_of_the_images_that_finalists_are_compared_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {7: validated(7, wrong=1), 3: with_folds(validated(3, wrong=3), 1)}
    folder = RunFolder(tmp_path)
    assert retrain_known(results, folder, monkeypatch).winner.finalist.trial == 7
    kfold = folder.summary.kfold
    assert kfold is not None
    assert kfold.folds == 3
    right = kfold.accuracy_corrected * 13
    assert kfold.accuracy_corrected_ci95 == wilson_interval(right, 13)


@pytest.mark.parametrize(("baseline_wrong", "is_compared"), [(6, True), (1, False), (None, False)])
def test_what_the_test_images_can_show_is_said_before_they_are_opened(
    baseline_wrong: int | None,
    is_compared: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = {7: validated(7, wrong=2)}
    if baseline_wrong is not None:
        results[0] = validated(0, wrong=baseline_wrong)
    retrained = retrain_known(results, RunFolder(tmp_path), monkeypatch)
    said = "198 test images show a true difference of" in " ".join(capsys.readouterr().out.split())
    assert (retrained.baseline is not None) == said == is_compared
    expected = pytest.approx(4.5 / 61) if is_compared else None
    assert retrained.expected_discordance == expected


def test_a_finalist_whose_fold_fails_is_dropped_and_the_next_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {number: validated(number, wrong=number) for number in range(4)}
    folder = RunFolder(tmp_path)
    retrained = retrain_known(results, folder, monkeypatch, n_finalists=2, failing={0})
    assert retrained.winner.finalist.trial == 1
    kfold = folder.summary.kfold
    assert kfold is not None
    assert [one.trial for one in kfold.finalists] == [1, 2]
    why = "fold 1 cannot be trained: ValueError: one value per channel"
    assert kfold.dropped == {"trial 0, 1 epoch": why}
    assert f"warning: trial 0, 1 epoch is dropped: {why}" in capsys.readouterr().out
    with pytest.raises(FoldError, match="no finalist could be retrained"):
        retrain_known(results, folder, monkeypatch, n_finalists=2, failing=range(4))


@pytest.mark.parametrize(("classes", "differ"), [((0, 1, 2), True), ((0, 0, 0), False)])
def test_the_model_is_an_ensemble_where_finalists_make_different_mistakes(
    classes: tuple[int, ...], differ: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {n: validated(n, 8, 3.0, 3, wrong_class=classes[n - 1]) for n in (1, 2, 3)}
    folder = RunFolder(tmp_path)
    retrained = retrain_known(results, folder, monkeypatch)
    scores = folder.summary.weighted_ensemble
    assert scores is not None
    assert scores.enabled == differ
    assert (scores.log_loss < scores.log_loss_baseline) == differ
    assert len(retrained.model.weights) == (3 if differ else 1)
    assert [part.weight for part in scores.parts] == retrained.model.weights
    assert {part.backbone for part in scores.parts} == {"tinynet"}
    assert sum(retrained.model.weights) == pytest.approx(1)
    predictions = retrained.out_of_fold.predictions
    assert predictions.rows.tolist() == list(range(60))
    assert np.allclose(predictions.probabilities.sum(1), 1)
    # Where both are right, they are sure of it; where one is wrong, the ensemble is not.
    wrong = results[1].candidate.without_crop.correct == 0
    assert (predictions.probabilities[wrong].max(1) < 0.8).all() == differ


def test_a_finalist_that_is_clearly_better_alone_is_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accurate = validated(0, wrong=12, also_wrong=[58])
    better = unsure_where_wrong(validated(1, wrong=12, freeze_depth=3, also_wrong=[55, 56]))
    assert choose_winner([accurate, better]) is accurate
    folder = RunFolder(tmp_path)
    retrained = retrain_known({0: accurate, 1: better}, folder, monkeypatch)
    summary = folder.summary
    assert retrained.winner.finalist is better.finalist
    assert retrained.model.weights == [1.0]
    assert summary.weighted_ensemble is None
    assert summary.best is not None
    assert summary.kfold is not None
    assert (summary.best.trial, summary.kfold.accuracy_mean) == (1, 46 / 60)
    of_choice = corrected_accuracy([better.candidate, accurate.candidate])
    corrected = summary.kfold.accuracy_corrected
    assert corrected == pytest.approx(of_choice - 1 / 60), "the other one has 47 of 60"
    assert summary.kfold.accuracy_corrected_ci95 == wilson_interval(60 * corrected, 60)
    assert "trial 1, 1 epoch is the model: alone, it has the lowest log" in capsys.readouterr().out


@pytest.mark.parametrize(("bound", "n_parts"), [(29.0, 1), (31.0, 3), (None, 3)])
def test_finalists_that_are_too_slow_together_are_no_ensemble(
    bound: float | None, n_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrain, "measure_latency", lambda *_: 30.0)
    results = {n: validated(n, 8, 3.0, 3, wrong_class=n - 1) for n in (1, 2, 3)}
    folder = RunFolder(tmp_path)
    retrained = retrain_known(results, folder, monkeypatch, max_latency_ms=bound)
    assert len(retrained.model.weights) == n_parts
    assert sum(retrained.model.weights) == pytest.approx(1)
    scores = folder.summary.weighted_ensemble
    assert scores is not None
    assert scores.enabled == (n_parts > 1)
    assert scores.latency_ms == 30.0 or bound is None


def test_folds_that_a_finalist_lacks_do_not_count_in_the_selection() -> None:
    both = [validated(1, 8).members, validated(2, 9, wrong_class=1).members]
    whole = select_finalists(both, [1.0, 1.0], 0, "accuracy", LABELS)
    fewer = select_finalists([both[0], both[1][:2]], [1.0, 1.0], 0, "accuracy", LABELS)
    same = select_finalists([one[:2] for one in both], [1.0, 1.0], 0, "accuracy", LABELS)
    assert whole is not None
    assert fewer is not None
    assert same is not None
    assert fewer.log_loss == same.log_loss != whole.log_loss
    assert select_finalists([both[0], both[1][:1]], [1.0, 1.0], 0, "accuracy", LABELS) is None
    assert select_finalists(both[:1], [1.0], 0, "accuracy", LABELS) is None


def test_parts_are_the_best_head_of_a_backbone_and_what_was_fine_tuned() -> None:
    """Heads that share all stages differ little; what has one fold cannot be measured."""
    first, better = validated(0, wrong=4), validated(1, wrong=2)
    tuned = validated(2, wrong=2, freeze_depth=3)
    single = replace(tuned, members=tuned.members[:1])
    assert possible_parts([first, better, tuned, single], tuned) == [1, 2]
    assert possible_parts([first, better, tuned], first) == [0, 2], "the winner stays"
    assert possible_parts([single, first, better], single) == [0, 2]
