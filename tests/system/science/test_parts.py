"""No image, and no near-duplicate of it, is in two parts that are compared.

Recorded in the run on noise, where trainings take their images; and for splits of any data.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from search.pipeline.retraining.kfold import split_folds
from search.runs.tables import read_rows
from tests.system.science.noise import CLASSES, Chance
from tests.system.science.noise_run import FIRST_TRIALS, N_EPOCHS, N_FOLDS, SEED, NoiseRun, Training
from trainables.models.model import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folds(noise_run: NoiseRun) -> list[set[int]]:
    """The rows of each fold, as the split's groups and labels decide them."""
    groups = np.array([int(image["group"]) for image in noise_run.split])
    rows = np.array(sorted(noise_run.rows("train", "val")))
    divided = split_folds(rows, noise_run.labels, N_FOLDS, SEED, groups)
    return [set(fold.tolist()) for fold in divided]


def test_near_duplicates_are_in_one_split_and_in_one_fold(
    noise_run: NoiseRun, folds: list[set[int]]
) -> None:
    parts = [noise_run.rows(name) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(noise_run.split)
    for disjoint in (parts, folds):
        groups = [group for part in disjoint for group in noise_run.groups(part)]
        assert len(groups) == len(set(groups))
    assert set.union(*folds) == noise_run.rows("train", "val")


def test_trials_learn_from_the_training_images(
    noise_run: NoiseRun,
) -> None:
    trainings = [one for one in noise_run.trainings("search") if one.seen]
    assert len(trainings) == len(FIRST_TRIALS)
    for training in trainings:
        assert training.fitted == []
        assert set(training.learned) == noise_run.rows("train")
        assert Counter(training.predicted) == dict.fromkeys(noise_run.rows("val"), N_EPOCHS)


def test_folds_learn_from_the_other_folds_alone(noise_run: NoiseRun, folds: list[set[int]]) -> None:
    pool = noise_run.rows("train", "val")
    trainings = [one for one in noise_run.trainings("cross_validation") if one.seen]
    left_out = Counter(left_out_fold(training, pool, folds) for training in trainings)
    assert left_out == dict.fromkeys(range(N_FOLDS), len(FIRST_TRIALS) + 1)
    for training in trainings:
        fold = folds[left_out_fold(training, pool, folds)]
        assert set(training.learned) in (set(), pool - fold), "a probe's epochs are 0"
        assert set(training.fitted) == pool - fold
        assert fold <= set(training.predicted)
        assert not noise_run.groups(training.seen) & noise_run.groups(fold)


def left_out_fold(training: Training, pool: set[int], folds: list[set[int]]) -> int:
    """Return the fold that a training has not seen."""
    unseen = pool - training.seen
    assert unseen in folds, "a training has seen a part of every fold"
    return folds.index(unseen)


def test_each_member_knows_the_other_folds_and_not_its_own(
    noise_run: NoiseRun, folds: list[set[int]]
) -> None:
    """Its predictions of its own give the temperature, and the possible label errors."""
    model = load_model(noise_run.folder / "model.pt")
    rows, names = sorted(noise_run.rows("train", "val")), noise_run.names("train", "val")
    files = [noise_run.path / "data" / name for name in names]
    pixels = np.stack([np.asarray(model.card.to_square(Image.open(file))) for file in files])
    predicted = model.parts[0].logits(torch.from_numpy(pixels)).numpy().argmax(2)
    right = predicted == noise_run.labels[rows]
    for member, fold in enumerate(folds):
        own = np.isin(rows, list(fold))
        most = Chance.of(np.array(names)[own].tolist()).bounds()[1]
        assert right[member, own].mean() <= most < right[member, ~own].mean()
    written = read_rows(noise_run.folder / "folds" / "oof_predictions.csv")
    assert [row["image"] for row in written] == names
    of_own = [fold for row in rows for fold in range(N_FOLDS) if row in folds[fold]]
    by_own = predicted[of_own, np.arange(len(rows))]
    alike = [CLASSES[one] == row["prediction_1"] for one, row in zip(by_own, written, strict=True)]
    assert np.mean(alike) > 0.95, "the cache's features are bfloat16"


def test_test_images_are_taken_when_everything_is_chosen(noise_run: NoiseRun) -> None:
    test = noise_run.rows("test")
    for stage, events in noise_run.events.items():
        taken = {row for event in events for row in event.get("rows", ())}
        assert bool(taken & test) is (stage == "evaluation"), stage
    for event in noise_run.events["evaluation"]:
        assert event["does"] == "predicts"
        assert set(event["rows"]) == test


def test_the_cache_holds_no_test_image(noise_run: NoiseRun) -> None:
    events = [event for stage in noise_run.events.values() for event in stage]
    cached = [set(event["rows"]) for event in events if event["does"] == "caches"]
    assert cached
    assert all(rows == noise_run.rows("train", "val") for rows in cached)
