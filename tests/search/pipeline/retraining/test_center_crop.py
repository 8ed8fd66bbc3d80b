"""Whether a second look helps: fitted in the folds, judged on what they held out, then kept."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from search.cluster.shared_file import StoredObject
from search.console.progress import Progress
from search.evaluation.calibration import fit_temperature, log_losses
from search.pipeline.finalists import Candidate
from search.pipeline.retraining.center_crop import MIN_GAIN, CenterCropProbes, CenterCropResult
from search.pipeline.retraining.kfold import Fold, RetrainConfig, out_of_fold, split_folds
from search.pipeline.retraining.retrain import Finalist, retrain_finalists
from search.runs.run_folder import RunFolder
from spaces.base import Space, TrialConfig
from spaces.sources import folder
from trainables.images import ImageRows, crop_and_normalise
from trainables.models.center_crop import enlarge_center
from trainables.models.ensemble import load_model
from trainables.models.linear_probe import MAX_IMAGES, fit_head
from trainables.models.weights import PACKAGED, load_weights
from trainables.worker import TrainingContext, clone_backbone

N_IMAGES, N_CLASSES, SIDE, PACKED, N_FOLDS = 90, 3, 32, 36, 3
SHARES = {"tinynet": 0.0}


def space_of(**fields: Any) -> Space:
    params = {"backbone": "tinynet", "freeze_depth": 5}
    return Space(source=folder(), params=params, image_size=SIDE, folds=N_FOLDS, **fields)


@pytest.fixture(scope="module")
def prepared(ray_session: None) -> Any:
    """Noise whose class is the colour of a dot in the middle."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    table = torch.randint(0, 256, (N_IMAGES, PACKED, PACKED, 3), generator=generator)
    middle = slice(PACKED // 2 - 5, PACKED // 2 + 5)
    table[:, middle, middle] //= 3
    for row, label in enumerate(labels.tolist()):
        table[row, middle, middle, label] += 90
    table = table.to(torch.uint8)
    network = StoredObject.put(load_weights(PACKAGED["tinynet"]))
    context = TrainingContext(
        table=StoredObject.put(table.numpy()),
        labels=labels.numpy(),
        n_classes=N_CLASSES,
        image_size=SIDE,
        flip=False,
        weights={"tinynet": network},
        feature_source=None,
        heads={"tinynet": {}},
        epochs=1,
        patience=None,
        seed=0,
    )
    rows = {"train": np.arange(70), "val": np.arange(70, N_IMAGES)}
    return SimpleNamespace(
        space=space_of(),
        context=context,
        manifest=SimpleNamespace(classes=("red", "green", "blue")),
        decoded=SimpleNamespace(table=context.table),
        images=table,
        rows=lambda *parts: np.concatenate([rows[part] for part in parts]),
        names=lambda rows: [f"{row}.png" for row in rows],
    )


def folds_of(prepared: Any, sure: float, wrong: int) -> list[Fold]:
    """Return folds that say the class by `sure`, and for every `wrong`th image another."""
    labels = prepared.context.labels
    rng = np.random.default_rng(0)
    made = []
    for part in split_folds(prepared.rows("train", "val"), labels, N_FOLDS, seed=0):
        said = np.where(part % wrong == 0, (labels[part] + 1) % N_CLASSES, labels[part])
        logits = sure * np.eye(N_CLASSES)[said] + rng.normal(size=(len(part), N_CLASSES))
        logits = logits.astype(np.float32)
        accuracy = float((logits.argmax(1) == labels[part]).mean())
        made.append(Fold(part, logits, np.zeros(len(part)), accuracy, {}, {}, 1.0))
    return made


def test_a_middle_that_tells_the_class_helps_a_model_that_does_not_know(prepared: Any) -> None:
    folds = folds_of(prepared, sure=1.0, wrong=4)
    looks = CenterCropProbes(prepared, SHARES)
    found = looks.look("tinynet", folds)
    assert found.helps
    one = Finalist(Candidate(0, RetrainConfig(TrialConfig("tinynet"), 1, None), 0.9), folds, found)
    once = float(np.mean([fold.accuracy for fold in folds]))
    assert one.kept is found
    assert one.mean > once + 0.1
    assert one.gap == pytest.approx(0.9 - once), "what the search flattered had one look, too"

    labels, (rows, logits) = prepared.context.labels, out_of_fold(found.folds)
    loss = log_losses(logits, labels[rows], fit_temperature(logits, labels[rows])).mean()
    assert found.log_loss == pytest.approx(loss)
    # Each head learned from the other folds' images alone, and is on the members' scale.
    network = clone_backbone(prepared.context, "tinynet", 5, torch.device("cpu")).eval()
    with torch.no_grad():
        pixels = crop_and_normalise(prepared.images, SIDE)
        features = network(enlarge_center(pixels)).float()
    _, first = out_of_fold(folds)
    seconds = []
    for fold in folds:
        others = np.setdiff1d(rows, fold.held_out)
        head = fit_head(features[others], torch.from_numpy(labels[others]), N_CLASSES)
        seconds.append((features[fold.held_out] @ head["weight"].T + head["bias"]).numpy())
    order = np.argsort(np.concatenate([fold.held_out for fold in folds]))
    second = np.concatenate(seconds)[order]
    scale = fit_temperature(first, labels[rows]) / fit_temperature(second, labels[rows])
    np.testing.assert_allclose(logits, first + scale * second, atol=0.3)  # bfloat16 features


def test_middles_that_are_all_alike_do_not_help(prepared: Any) -> None:
    table = prepared.images.clone()
    table[:, 4:-4, 4:-4] = 128
    other = SimpleNamespace(**vars(prepared))
    other.context = replace(prepared.context, table=StoredObject.put(table.numpy()))
    folds = folds_of(other, sure=6.0, wrong=30)
    found = CenterCropProbes(other, SHARES).look("tinynet", folds)
    assert not found.helps
    one = Finalist(Candidate(0, RetrainConfig(TrialConfig("tinynet"), 1, None), 0.9), folds, found)
    assert one.folds is folds
    assert one.kept is None


def test_what_it_costs_must_be_worth_it() -> None:
    def helps(log_loss: float) -> bool:
        return CenterCropResult([], {}, log_loss, log_loss_one_view=0.1).helps

    assert helps((1 - MIN_GAIN) * 0.1)
    assert not helps(0.0995), "a probe that knows nothing may do as well by luck"
    assert not helps(0.11)


def test_where_there_is_no_second_look(prepared: Any) -> None:
    def applies_to(**changes: Any) -> bool:
        other = SimpleNamespace(**{**vars(prepared), **changes})
        return CenterCropProbes(other, SHARES).applies_to("tinynet")

    assert applies_to()
    assert not applies_to(space=space_of(center_crop=False))
    assert not applies_to(context=replace(prepared.context, heads={})), "it was not probed"
    assert not applies_to(rows=lambda *_: np.arange(MAX_IMAGES + 1))


def test_the_model_gives_what_the_folds_were_judged_by(prepared: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.note("gpu_fraction", SHARES)
    candidate = Candidate(
        None, RetrainConfig(TrialConfig("tinynet", freeze_depth=5, lr=0.01), 1, None), 0.5
    )
    made = retrain_finalists(prepared, [candidate], True, run, Progress(quiet=True))
    section = run.summary["kfold"]["center_crop"]
    assert section["kept"]
    assert section["log_loss"] < section["log_loss_baseline"]
    assert section["accuracy_mean"] == run.summary["kfold"]["accuracy_mean"]
    assert run.summary["kfold"]["gap"] == 0.5 - section["accuracy_mean_without"]
    model = load_model(tmp_path / "model.pt")
    assert model.card.center_crop
    with (tmp_path / "folds" / "oof_predictions.csv").open(newline="") as file:
        told = {row["name"]: float(row["p:green"]) for row in csv.DictReader(file)}
    for index, fold in enumerate(made.winner.folds):
        images = ImageRows(prepared.images, torch.from_numpy(fold.held_out.copy()))
        logits = model.logits(images)[index]
        probabilities = torch.softmax(logits / model.card.temperature, 1)[:, 1]
        expected = [told[name] for name in prepared.names(fold.held_out)]
        np.testing.assert_allclose(probabilities, expected, atol=0.03)  # features are bfloat16
