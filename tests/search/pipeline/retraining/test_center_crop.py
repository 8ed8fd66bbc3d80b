"""The centre-crop branch: fitted in each fold, and part of the model where it helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from search.cluster.shared_file import StoredObject
from search.console.progress import Progress
from search.evaluation.calibration import fit_temperature, log_losses, scale_temperature
from search.evaluation.intervals import wilson_interval
from search.evaluation.selection import MIN_GAIN_SE, Candidate, ImageScores, center_crop_gain
from search.pipeline.finalists import Finalist
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining.center_crop import CenterCropProbes, CenterCropResult
from search.pipeline.retraining.cross_validation import CrossValidation
from search.pipeline.retraining.kfold import (
    Fold,
    FoldStore,
    RetrainConfig,
    out_of_fold,
    split_folds,
)
from search.pipeline.retraining.retrain import retrain_finalists
from search.runs.run_folder import RunFolder
from search.runs.tables import read_rows
from spaces.base import Space, TrialConfig
from spaces.sources import folder
from tests.fixtures.prepared_data import prepared_data
from trainables.images import crop_pixels
from trainables.models.center_crop import enlarge_center
from trainables.models.linear_probe import MAX_IMAGES, fit_head, uses_center_crop
from trainables.models.model import load_model
from trainables.models.ood import fit_subspace
from trainables.pretrained.weights import PACKAGED, load_weights
from trainables.worker import TrainingContext, clone_backbone

N_IMAGES, N_CLASSES, SIDE, CACHE_SIZE, N_FOLDS = 90, 3, 32, 36, 3
GPU_FRACTION = {"tinynet": 0.0}
CLASSES = ("red", "green", "blue")


def space_of(**fields: Any) -> Space:
    params = {"backbone": "tinynet", "freeze_depth": 5}
    return Space(
        source=folder(),
        params=params,
        image_size=SIDE,
        epochs=1,
        folds=N_FOLDS,
        **fields,
    )


@pytest.fixture(scope="module")
def prepared(ray_session: None) -> PreparedData:
    """Noise whose class is the colour of a square in the centre."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    table = torch.randint(0, 256, (N_IMAGES, CACHE_SIZE, CACHE_SIZE, 3), generator=generator)
    centre = slice(CACHE_SIZE // 2 - 5, CACHE_SIZE // 2 + 5)
    table[:, centre, centre] //= 3
    for row, label in enumerate(labels.tolist()):
        table[row, centre, centre, label] += 90
    return prepare(table.to(torch.uint8).numpy(), labels.tolist())


def prepare(pixels: np.ndarray, labels: list[int]) -> PreparedData:
    return prepared_data(
        space_of(),
        pixels,
        labels,
        CLASSES,
        ["train"] * 70 + ["val"] * 20,
        table=StoredObject.put(pixels),
        weights={"tinynet": StoredObject.put(load_weights(PACKAGED["tinynet"]))},
    )


def context_of(prepared: PreparedData) -> TrainingContext:
    return prepared.training_context({"tinynet": {}}, None)


def probes_of(prepared: PreparedData, path: Path) -> CenterCropProbes:
    return CenterCropProbes(prepared, context_of(prepared), GPU_FRACTION, path)


def folds_of(prepared: PreparedData, margin: float, wrong: int) -> list[Fold]:
    """Return folds that predict the class by a margin, and for every `wrong`th image another."""
    labels = prepared.images.labels
    rng = np.random.default_rng(0)
    folds = []
    for rows in split_folds(prepared.rows("train", "val"), labels, N_FOLDS, seed=0):
        predicted = np.where(rows % wrong == 0, (labels[rows] + 1) % N_CLASSES, labels[rows])
        logits = margin * np.eye(N_CLASSES)[predicted] + rng.normal(size=(len(rows), N_CLASSES))
        logits = logits.astype(np.float32)
        accuracy = float((logits.argmax(1) == labels[rows]).mean())
        folds.append(Fold(rows, logits, np.zeros(len(rows)), accuracy, {}, {}, 1.0, ""))
    return folds


def finalist(val_accuracy: float) -> Finalist:
    return Finalist(0, RetrainConfig(TrialConfig("tinynet"), 1, 1), val_accuracy)


def test_centres_that_show_the_class_help_a_model_that_does_not_see_it(
    prepared: PreparedData, tmp_path: Path
) -> None:
    folds = folds_of(prepared, margin=1.0, wrong=4)
    result = probes_of(prepared, tmp_path).evaluate("tinynet", folds)
    assert result.enabled
    validated = CrossValidation(finalist(0.9), folds, result.candidate, result)
    without = float(np.mean([fold.accuracy for fold in folds]))
    assert validated.enabled_center_crop is result
    assert validated.mean > without + 0.1
    assert validated.optimism == pytest.approx(0.9 - without), "the search had no centre crop"
    scores = result.scores()
    assert scores.accuracy_mean == validated.mean
    assert scores.accuracy_mean_baseline == pytest.approx(without)

    labels, (rows, logits) = prepared.images.labels, out_of_fold(result.folds)
    loss = log_losses(logits, labels[rows], fit_temperature(logits, labels[rows])).mean()
    assert scores.log_loss == pytest.approx(loss)
    assert scores.log_loss_baseline - scores.log_loss == pytest.approx(result.gain)
    # Each head was fitted on the other folds' images alone, and is scaled to the members.
    network = clone_backbone(prepared.features, "tinynet", 5, torch.device("cpu")).eval()
    with torch.no_grad():
        pixels = crop_pixels(prepared.table, SIDE)
        features = network(enlarge_center(pixels)).float()
    _, of_members = out_of_fold(folds)
    crop_logits = []
    for fold in folds:
        others = np.setdiff1d(rows, fold.rows)
        head = fit_head(features[others], torch.from_numpy(labels[others]), N_CLASSES)
        crop_logits.append((features[fold.rows] @ head["weight"].T + head["bias"]).numpy())
    order = np.argsort(np.concatenate([fold.rows for fold in folds]))
    of_crops = np.concatenate(crop_logits)[order]
    scale = fit_temperature(of_members, labels[rows]) / fit_temperature(of_crops, labels[rows])
    np.testing.assert_allclose(logits, of_members + scale * of_crops, atol=0.3)  # bfloat16


def test_heads_of_an_earlier_session_are_not_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((N_IMAGES, CACHE_SIZE, CACHE_SIZE, 3), np.uint8)
    labels = (np.arange(N_IMAGES) % N_CLASSES).tolist()
    splits = ["train"] * 70 + ["val"] * 20
    prepared = prepared_data(space_of(), pixels, labels, CLASSES, splits)
    labels_of_table = prepared.images.labels
    context: Any = SimpleNamespace(labels=labels_of_table, groups=None, heads={}, seed=0)
    fits = []

    def fit(self: Any, backbone: str, fold_rows: Any) -> list[Any]:
        fits.append(backbone)
        rng = np.random.default_rng(len(fits))
        head = {"weight": torch.full((N_CLASSES, 2), len(fits)), "bias": torch.zeros(N_CLASSES)}
        return [(head, rng.normal(size=(len(rows), N_CLASSES))) for rows in fold_rows]

    monkeypatch.setattr(CenterCropProbes, "_fit", fit)

    def evaluate(folds: list[Fold]) -> CenterCropResult:
        probes = CenterCropProbes(prepared, context, GPU_FRACTION, tmp_path / "state")
        return probes.evaluate("tinynet", folds)

    folds = folds_of(prepared, margin=1.0, wrong=4)
    first, again = evaluate(folds), evaluate(folds)
    assert len(fits) == 1
    assert torch.equal(again.heads["weight"], first.heads["weight"])
    for one, other in zip(first.folds, again.folds, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
    some = evaluate(folds[1:])
    assert len(fits) == 1, "time may not last for all folds"
    for one, other in zip(first.folds[1:], some.folds, strict=True):
        assert np.corrcoef(one.logits.ravel(), other.logits.ravel())[0, 1] > 0.99
    (file,) = (tmp_path / "state").iterdir()
    file.write_bytes(b"damaged")
    evaluate(folds)
    assert len(fits) == 2


def test_centres_that_are_all_alike_do_not_help(prepared: PreparedData, tmp_path: Path) -> None:
    pixels = prepared.images.pixels.copy()
    pixels[:, 4:-4, 4:-4] = 128
    other = prepare(pixels, prepared.images.labels.tolist())
    folds = folds_of(other, margin=6.0, wrong=30)
    result = probes_of(other, tmp_path).evaluate("tinynet", folds)
    assert not result.enabled
    validated = CrossValidation(finalist(0.9), folds, result.candidate, result)
    assert validated.folds is folds
    assert validated.enabled_center_crop is None


def test_the_gain_must_be_clear_of_its_standard_error() -> None:
    scores = ImageScores(np.ones(9, bool), np.ones(9))

    def enabled(gain: float) -> bool:
        return CenterCropResult([], [], {}, Candidate(scores, scores), gain, gain_se=0.1).enabled

    assert enabled(1.1 * MIN_GAIN_SE * 0.1)
    assert not enabled(0.9 * MIN_GAIN_SE * 0.1), "a probe that knows nothing may gain by chance"
    assert not enabled(-0.1)


def test_by_another_metric_its_own_gain_decides() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % N_CLASSES
    logits = rng.normal(size=(90, N_CLASSES))
    scores = [
        ImageScores(one.argmax(1) == labels, np.ones(90), one, labels)
        for one in (logits, logits + np.eye(N_CLASSES)[labels])
    ]
    candidate = Candidate(*scores)
    gain = center_crop_gain(candidate, metric="macro_f1")
    folds = [Fold(np.arange(90), logits, np.zeros(90), 0.5, {}, {}, 1.0, "")]
    result = CenterCropResult(folds, folds, {}, candidate, -1.0, 0.1, "macro_f1", gain)
    assert result.enabled, "the log loss does not decide"
    section = result.scores()
    assert section.score - section.score_baseline == pytest.approx(gain[0])
    assert (section.score_gain_se, section.log_loss_gain_se) == (gain[1], 0.1)
    worse = center_crop_gain(Candidate(*reversed(scores)), metric="macro_f1")
    assert not replace(result, gain=1.0, score_gain=worse).enabled


def test_where_there_is_no_centre_crop(prepared: PreparedData, tmp_path: Path) -> None:
    assert probes_of(prepared, tmp_path).applies_to("tinynet")
    without = replace(prepared, space=space_of(center_crop=False))
    assert not probes_of(without, tmp_path).applies_to("tinynet")
    without_probe = CenterCropProbes(
        prepared, prepared.training_context({}, None), GPU_FRACTION, tmp_path
    )
    assert not without_probe.applies_to("tinynet")
    assert not uses_center_crop(prepared.space, MAX_IMAGES + 1)


def test_the_model_predicts_as_its_folds_did(prepared: PreparedData, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    config = TrialConfig("tinynet", freeze_depth=5, lr=0.01)
    probe = Finalist(None, RetrainConfig(config, 1, 1), 0.5)
    retrained = retrain_finalists(
        prepared,
        context_of(prepared),
        [probe],
        True,
        GPU_FRACTION,
        run,
        Progress(quiet=True),
    )
    kfold = run.summary.kfold
    assert kfold is not None
    assert kfold.center_crop is not None
    assert kfold.center_crop.enabled
    assert kfold.center_crop.log_loss < kfold.center_crop.log_loss_baseline
    assert kfold.center_crop.accuracy_mean == kfold.accuracy_mean
    assert kfold.accuracy_corrected <= kfold.accuracy_mean
    n_correct = kfold.accuracy_corrected * N_IMAGES
    assert kfold.accuracy_corrected_ci95 == pytest.approx(wilson_interval(n_correct, N_IMAGES))
    assert kfold.optimism == 0.5 - kfold.center_crop.accuracy_mean_baseline
    model = load_model(tmp_path / "model.pt")
    assert model.card.center_crop
    assert retrained.baseline is None
    assert run.summary.calibration is not None
    assert run.summary.calibration.temperature == model.card.temperature
    written = {
        row["image"]: float(row["prob_green"])
        for row in read_rows(tmp_path / "folds" / "oof_predictions.csv")
    }
    for index, fold in enumerate(retrained.winner.folds):
        logits = model.logits(prepared.image_rows(fold.rows))[index]
        probabilities = torch.softmax(logits / model.card.temperature, 1)[:, 1]
        expected = [written[name] for name in prepared.names(fold.rows)]
        np.testing.assert_allclose(probabilities, expected, atol=0.03)  # features are bfloat16


def save_folds(prepared: PreparedData, run: RunFolder, one: Finalist, folds: list[Fold]) -> None:
    """Save folds as an earlier session did, with members of random heads."""
    network = clone_backbone(prepared.features, "tinynet", 5, torch.device("cpu"))
    features = torch.randn(40, network.feature_size)
    head = {"head.1.weight": features[:N_CLASSES], "head.1.bias": torch.zeros(N_CLASSES)}
    store = FoldStore(run.path / "folds" / "state", one.name, one.retrain_config)
    for index, fold in enumerate(folds):
        residuals = np.linspace(0, 1, len(fold.rows), dtype=np.float32)
        more = {"weights": head, "subspace": fit_subspace(features), "residuals": residuals}
        store.save(index, replace(fold, **more))


def test_the_baseline_has_its_own_temperature(prepared: PreparedData, tmp_path: Path) -> None:
    run, labels = RunFolder(tmp_path), prepared.images.labels
    config = RetrainConfig(TrialConfig("tinynet", freeze_depth=5), 1, 1)
    baseline, winner = Finalist(0, config, 0.4), Finalist(3, config, 0.5)
    overconfident = folds_of(prepared, margin=30.0, wrong=3)
    save_folds(prepared, run, baseline, overconfident)
    save_folds(prepared, run, winner, folds_of(prepared, margin=3.0, wrong=9))
    retrained = retrain_finalists(
        replace(prepared, space=space_of(center_crop=False)),
        context_of(prepared),
        [baseline, winner],
        True,
        GPU_FRACTION,
        run,
        Progress(quiet=True),
    )
    assert retrained.winner.finalist is winner
    scaling = scale_temperature(
        [fold.logits for fold in overconfident], [labels[fold.rows] for fold in overconfident]
    )
    assert scaling.temperature > 10
    assert retrained.baseline is not None
    assert retrained.baseline.card.temperature == pytest.approx(scaling.temperature)
    assert retrained.model.card.temperature < 2
