"""On pure noise every accuracy is that of chance: what is not, has seen what it is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search.runs.run_folder import BEST_WEIGHTS
from search.runs.tables import read_rows
from tests.system.science.noise import CHANCE, CLASSES, N_CLASSES, N_EXTERNAL, N_PLANTED, Chance
from tests.system.science.noise_run import FIRST_TRIALS, N_EPOCHS, NoiseRun
from trainables.images import crop_pixels
from trainables.models.backbones import create_backbone
from trainables.models.classifier import Classifier, create_head
from trainables.pretrained.weights import PACKAGED, load_weights

pytestmark = pytest.mark.slow

GAP_SDS = 5.0
"""Standard deviations that a gap between two accuracies may have; beyond lie 6 in 10 million."""


def accuracies(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield every accuracy of a summary with its path, also those that later versions add."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from accuracies(value, (*path, key))
    elif isinstance(content, list):
        for value in content:
            yield from accuracies(value, path)
    elif isinstance(content, float) and "accuracy" in path[-1]:
        other = path[-1].startswith("top3") or path[-1].endswith(("_std", "_ci95"))
        if not other and "bins" not in path:
            yield path, content


def chance_of(run: NoiseRun) -> dict[str, Chance]:
    """Return, by section of the summary, the chance of the images that it is measured on."""
    cross_validated, test = Chance.of(run.names("train", "val")), Chance.of(run.names("test"))
    outside = [f"{label}/outside{i}_0" for label in CLASSES for i in range(N_EXTERNAL)]
    return {
        "linear_probe": cross_validated,
        "kfold": cross_validated,
        "test": test,
        "comparison": test,
        "external": Chance.of(outside),
    }


def test_every_accuracy_is_that_of_chance(noise_run: NoiseRun) -> None:
    chances = chance_of(noise_run)
    best = Chance.of(noise_run.names("val")).highest(len(FIRST_TRIALS) * N_EPOCHS)
    assert best < 0.7, "a leak would not be seen"
    checked = set()
    for path, accuracy in accuracies(noise_run.summary):
        if path[-1] == "val_accuracy":  # the best of all epochs, or a probe's
            assert accuracy <= best, path
        else:
            low, high = chances[path[0]].bounds()
            assert low <= accuracy <= high, path
        checked.add(path[0])
    # There is no comparison where the baseline is the best finalist, as may happen here.
    assert checked >= {*chances, "best"} - {"comparison"}


def test_every_fold_is_at_chance(noise_run: NoiseRun) -> None:
    rows = read_rows(noise_run.folder / "folds" / "folds.csv")
    assert len(rows) == 3 * (len(FIRST_TRIALS) + 1), "all trials and the probe are finalists"
    cross_validated = Chance.of(noise_run.names("train", "val"))
    for row in rows:
        # A fold is a third of the images, with a third of the groups of each size.
        assert abs(float(row["accuracy"]) - CHANCE) < GAP_SDS * 3**0.5 * cross_validated.sd, row


def test_every_epoch_is_at_chance(noise_run: NoiseRun) -> None:
    best = Chance.of(noise_run.names("val")).highest(len(FIRST_TRIALS) * N_EPOCHS)
    for number in range(len(FIRST_TRIALS)):
        curve = read_rows(noise_run.folder / "trials" / str(number) / "progress.csv")
        assert len(curve) == N_EPOCHS
        assert max(float(epoch["val_accuracy"]) for epoch in curve) <= best
    assert float(curve[-1]["train_accuracy"]) > best, "noise must be learned by heart"
    assert noise_run.summary["search"]["complete"] == len(FIRST_TRIALS)


def test_no_gap_is_more_than_chance(noise_run: NoiseRun) -> None:
    chances, summary = chance_of(noise_run), noise_run.summary
    validation = Chance.of(noise_run.names("val"))
    best = validation.highest(len(FIRST_TRIALS) * N_EPOCHS)
    low, high = chances["kfold"].bounds()
    assert -high <= summary["kfold"]["optimism"] <= best - low
    # Each of two models is right by chance, whatever the other says.
    test, comparison = chances["test"], summary.get("comparison", {"difference": 0.0})
    assert abs(comparison["difference"]) < GAP_SDS * 2**0.5 * test.sd
    gap = summary["test"]["accuracy"] - summary["kfold"]["accuracy_mean"]
    assert abs(gap) < GAP_SDS * (test.sd + chances["kfold"].sd)
    gap = summary["external"]["accuracy"] - summary["test"]["accuracy"]
    assert abs(gap) < GAP_SDS * (test.sd + chances["external"].sd)


@pytest.mark.parametrize("kind", ["planted", "single"])
def test_images_with_and_without_near_duplicates_are_predicted_alike(
    noise_run: NoiseRun, kind: str
) -> None:
    files = ["folds/oof_predictions.csv", "test_predictions.csv", "external_predictions.csv"]
    for file in files:
        rows = [dict(row) for row in read_rows(noise_run.folder / file)]
        rows = [row for row in rows if kind in row["image"]]
        if file.startswith("external"):
            assert len(rows) == (N_CLASSES * N_PLANTED if kind == "planted" else 0)
            continue  # near-duplicates of images that were trained on; they are not scored
        low, high = Chance.of([row["image"] for row in rows]).bounds()
        right = [row["image"].split("/")[0] == row["prediction_1"] for row in rows]
        assert low <= np.mean(right) <= high, file


def test_the_model_does_not_claim_more_than_chance(noise_run: NoiseRun) -> None:
    for file, section in (("test", "test"), ("folds/oof", "kfold")):
        rows = read_rows(noise_run.folder / f"{file}_predictions.csv")
        claimed = np.mean([float(row["probability_1"]) for row in rows])
        assert CHANCE <= claimed <= chance_of(noise_run)[section].bounds()[1], file


def test_near_duplicates_of_the_data_are_not_among_the_scored_external_images(
    noise_run: NoiseRun,
) -> None:
    external = noise_run.summary["external"]
    assert external["n"] == N_CLASSES * (N_EXTERNAL + N_PLANTED)
    assert external["n_labelled"] == N_CLASSES * N_EXTERNAL
    assert external["n_near_duplicates"] == N_CLASSES * N_PLANTED


def test_no_trial_knows_the_test_images(noise_run: NoiseRun) -> None:
    """Trials are not evaluated on them; a trial that was trained on them would know them."""
    for number, params in enumerate(FIRST_TRIALS):
        path = noise_run.folder / "trials" / str(number) / BEST_WEIGHTS
        model = classifier(int(params["freeze_depth"]))
        model.load_member_weights(torch.load(path, weights_only=True)["content"])
        assert accuracy_on(noise_run, model, "test") <= max_by_chance(noise_run, "test")


def test_the_probes_head_knows_the_training_images_alone(noise_run: NoiseRun) -> None:
    """Trials begin with it, and are compared on the validation images."""
    heads = torch.load(noise_run.path / "record.heads", weights_only=True)
    model = classifier(freeze_depth=5)
    model.load_member_weights({f"head.1.{key}": value for key, value in heads["tinynet"].items()})
    assert accuracy_on(noise_run, model, "train") > 2 * max_by_chance(noise_run, "train")
    for name in ("val", "test"):
        assert accuracy_on(noise_run, model, name) <= max_by_chance(noise_run, name)


def max_by_chance(run: NoiseRun, split: str) -> float:
    return Chance.of(run.names(split)).highest(len(FIRST_TRIALS))


def classifier(freeze_depth: int) -> Classifier:
    """Return tinynet with a head of random weights."""
    backbone = create_backbone("tinynet", load_weights(PACKAGED["tinynet"]))
    backbone.freeze(freeze_depth)
    return Classifier(backbone, create_head(backbone.feature_size, N_CLASSES, 0, 0.0)).eval()


def accuracy_on(run: NoiseRun, model: Classifier, split: str) -> float:
    """Return the accuracy on a split of the data, whose images are read from their files."""
    names = run.names(split)
    files = [run.path / "data" / name for name in names]
    pixels = [
        np.asarray(Image.open(file).resize((32, 32), Image.Resampling.BILINEAR)) for file in files
    ]
    with torch.no_grad():
        logits = model(crop_pixels(torch.from_numpy(np.stack(pixels)), 32))
    labels = [name.split("/")[0] for name in names]
    return float(np.mean(np.array(labels) == np.array(CLASSES)[logits.argmax(1)]))
