"""A winner that is known beforehand, its interval and its comparison: by real trainings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from search.cluster.shared_file import StoredObject
from search.console.progress import Progress
from search.evaluation.intervals import wilson_interval
from search.pipeline.evaluate import evaluate
from search.pipeline.finalists import Finalist
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.kfold import RetrainConfig
from search.pipeline.retraining.retrain import Retrained, retrain_finalists
from search.runs.run_folder import RunFolder
from search.runs.tables import read_rows
from spaces.base import Space, TrialConfig
from spaces.sources import folder
from tests.fixtures.prepared_data import prepared_data
from trainables.models.model import load_model, predict
from trainables.pretrained.weights import PACKAGED, load_weights

CLASSES = ("red", "green", "blue")
SPLITS = ["train"] * 60 + ["val"] * 21 + ["test"] * 39
SIDE, N_FOLDS = 32, 3
SPACE = Space(
    source=folder(),
    params={"backbone": "tinynet", "freeze_depth": 5},
    image_size=SIDE,
    resize_size=SIDE,
    epochs=4,
    folds=N_FOLDS,
    center_crop=False,
)


@pytest.fixture(scope="module")
def prepared(ray_session: None) -> PreparedData:
    """Noise with one strong channel: its class. A tenth of the labels are those of another."""
    rng = np.random.default_rng(0)
    labels = np.arange(len(SPLITS)) % len(CLASSES)
    pixels = rng.integers(0, 150, (len(SPLITS), SIDE, SIDE, 3), dtype=np.uint8)
    pixels[np.arange(len(SPLITS)), :, :, labels] += 100
    labels[::10] = (labels[::10] + 1) % len(CLASSES)
    return prepared_data(
        SPACE,
        pixels,
        labels.tolist(),
        CLASSES,
        SPLITS,
        table=StoredObject.put(pixels),
        weights={"tinynet": StoredObject.put(load_weights(PACKAGED["tinynet"]))},
    )


def finalist(trial: int, lr: float, val_accuracy: float) -> Finalist:
    config = TrialConfig("tinynet", lr=lr, freeze_depth=5, batch_size=8)
    return Finalist(trial, RetrainConfig(config, 4, 4), val_accuracy)


@dataclass(frozen=True)
class Run:
    """A model, what came of its making, and its folder."""

    retrained: Retrained
    folder: RunFolder


@pytest.fixture(scope="module")
def run(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The baseline hardly learns, and comes first; trial 5 learns, and has the lower validation
    accuracy; trial 7 learns less."""
    run_folder = RunFolder(tmp_path_factory.mktemp("run"))
    finalists = [finalist(0, 1e-7, 0.99), finalist(5, 0.02, 0.6), finalist(7, 1e-5, 0.8)]
    retrained = retrain_finalists(
        prepared,
        prepared.training_context({}, None),
        finalists,
        False,
        {"tinynet": 0.0},
        run_folder,
        Progress(quiet=True),
    )
    evaluate(
        prepared,
        retrained.model,
        retrained.baseline,
        retrained.out_of_fold,
        run_folder,
        Progress(quiet=True),
    )
    return Run(retrained, run_folder)


def test_the_finalist_of_the_best_folds_is_the_model(run: Run, prepared: PreparedData) -> None:
    summary = run.folder.summary
    assert summary.best is not None
    assert summary.kfold is not None
    assert run.retrained.winner.finalist.trial == summary.best.trial == 5
    means = {one.trial: one.accuracy_mean for one in summary.kfold.finalists}
    assert means[5] > 0.8 > 0.6 > max(means[0], means[7]), "the test needs one good finalist"
    model = load_model(run.folder.path / "model.pt")
    rows = prepared.rows("test")
    predicted = predict(model, prepared.image_rows(rows)).probabilities.numpy().argmax(1)
    assert np.mean(predicted == prepared.images.labels[rows]) > 0.8


def test_the_interval_of_the_folds_is_of_all_their_images(run: Run, prepared: PreparedData) -> None:
    kfold = run.folder.summary.kfold
    assert kfold is not None
    rows = read_rows(run.folder.path / "folds" / "oof_predictions.csv")
    assert len(rows) == len(prepared.rows("train", "val"))
    n_right = sum(row["label"] == row["prediction_1"] for row in rows)
    low, high = kfold.accuracy_corrected_ci95
    expected_low, expected_high = wilson_interval(n_right, len(rows))
    assert high - low == pytest.approx(expected_high - expected_low, rel=0.2)
    assert low < kfold.accuracy_mean < high


def test_the_model_is_the_first_side_of_the_comparison(run: Run) -> None:
    comparison, test = run.folder.summary.comparison, run.folder.summary.test
    assert comparison is not None
    assert test is not None
    assert comparison.accuracy == test.accuracy > 0.8
    assert comparison.baseline_accuracy < 0.6
    assert comparison.difference == pytest.approx(
        comparison.accuracy - comparison.baseline_accuracy
    )
    n = comparison.n_model_only_correct - comparison.n_baseline_only_correct
    assert n == round(comparison.difference * comparison.n) > 0
    assert comparison.difference_ci95[0] > 0


def test_the_comparison_is_with_the_baseline(run: Run, prepared: PreparedData) -> None:
    assert run.retrained.baseline is not None
    rows = prepared.rows("test")
    images = prepared.image_rows(rows)
    predicted = predict(run.retrained.baseline, images).probabilities.numpy().argmax(1)
    comparison = run.folder.summary.comparison
    assert comparison is not None
    accuracy = np.mean(predicted == prepared.images.labels[rows])
    assert comparison.baseline_accuracy == pytest.approx(accuracy)
