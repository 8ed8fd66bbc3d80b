import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from search.evaluation.metrics import score_predictions
from search.runs.run_folder import RunFolder
from search.runs.summary import (
    AblationScores,
    BestModel,
    Calibration,
    CalibrationChange,
    CalibrationScores,
    EnsemblePart,
    ExternalScores,
    ProbeScore,
    ReliabilityBin,
    RunSummary,
    WeightedEnsembleScores,
    read_summary,
)
from search.runs.validation import FolderError

BINS = [ReliabilityBin(confidence=0.9, accuracy=1.0, n=3)]
SCORES = CalibrationScores(ece=0.1, log_loss=0.2, bins=BINS)
SUMMARY = RunSummary(
    linear_probe={"tinynet": ProbeScore(accuracy=0.97, seconds=1.0)},
    gpu_fraction={"tinynet": 0.25},
    best=BestModel(
        trial=None,
        name="linear probe of tinynet",
        config={"backbone": "tinynet", "lr": 0.001, "freeze_depth": 5},
        val_accuracy=0.97,
        epoch=0,
    ),
    calibration=Calibration(
        temperature=1.5,
        applied=True,
        fitted_temperature=1.5,
        log_loss_gain_se=0.01,
        test=CalibrationChange(n=3, before=SCORES, after=SCORES),
    ),
    stages={"data": 1.5},
)


def test_a_summary_is_read_as_it_was_written(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_summary(SUMMARY)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert list(content) == ["linear_probe", "gpu_fraction", "best", "calibration", "stages"]
    assert content["best"]["trial"] is None
    # By their texts: from Python 3.13 on, equality of dataclasses compares NaN with NaN.
    assert repr(read_summary(tmp_path / "summary.json")) == repr(SUMMARY)


def test_the_scores_of_external_images_stand_beside_their_counts(tmp_path):
    scores = score_predictions(np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]], ["cat", "dog"])
    for found in (scores, None):
        external = ExternalScores(
            n=9, n_labelled=3 * bool(found), n_near_duplicates=1, n_ood=2, scores=found
        )
        RunFolder(tmp_path).write_summary(RunSummary(external=external))
        content = json.loads((tmp_path / "summary.json").read_text())["external"]
        assert (content["n"], content["n_ood"]) == (9, 2)
        assert content["accuracy"] == (None if found is None else pytest.approx(2 / 3))
        assert content["top3_accuracy"] == (None if found is None else 1.0)
        read = read_summary(tmp_path / "summary.json").external
        assert read is not None
        assert (read.n, read.n_labelled) == (9, 3 * bool(found))
        assert (read.scores is None) == (found is None)
        if read.scores is not None:
            assert read.scores.confusion == scores.confusion
            assert read.scores.n == 3


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("test.accuracy", None, "should be a valid number"),
        ("test.accuracy", 1.5, "less than or equal to 1"),
        ("test.accuracy", math.inf, "less than or equal to 1"),
        ("test.accuracy", 0.4, "n and accuracy should be those of confusion"),
        ("test.n", 10**400, "less than or equal to"),
        ("test.n", 0, "n and accuracy should be those of confusion"),
        ("test.confusion", [[1, 0]], "should have the classes of per_class"),
        ("test.per_class", [], "should have the classes of per_class"),
        ("test.log_loss", math.inf, "a number that a run can have"),
        ("stages.data", None, "should be a valid number"),
        ("stages.data", -1, "greater than or equal to 0"),
        ("best.val_accuracy", -0.1, "should be in [0, 1]"),
        ("best.val_score", 1e308, "a number that a run can have"),
        ("best.epoch", -1, "greater than or equal to 0"),
    ],
)
def test_a_number_that_no_run_has_is_damage(tmp_path, path, value, reason):
    """It is neither shown, nor an error where it is formatted."""
    scores = score_predictions(np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]], ["cat", "dog"])
    RunFolder(tmp_path).write_summary(replace(SUMMARY, test=scores))
    file = tmp_path / "summary.json"
    assert read_summary(file).test is not None
    content = json.loads(file.read_text())
    section, key = path.split(".")
    content[section][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(FolderError, match=re.escape(reason)) as caught:
        read_summary(file)
    assert str(caught.value).startswith(f"{file} is damaged: {section}")


@pytest.mark.parametrize(
    ("enabled", "parts", "expected"),
    [
        (True, ["cnn", "resnet18", "cnn"], ["cnn", "resnet18"]),  # the best finalist is no part
        (True, ["cnn", "tinynet"], ["cnn", "tinynet"]),
        (False, ["cnn", "resnet18"], ["tinynet"]),
    ],
)
def test_the_backbones_of_the_model_are_those_of_its_parts(enabled, parts, expected):
    scores = ("log_loss", "log_loss_baseline", "log_loss_gain_se")
    scores += ("score", "score_baseline", "score_gain_se")
    ensemble = WeightedEnsembleScores(
        enabled=enabled,
        parts=[
            EnsemblePart(name=f"trial {number}", weight=0.5, members=5, backbone=backbone)
            for number, backbone in enumerate(parts)
        ],
        **dict.fromkeys(scores, 0.1),
    )
    assert replace(SUMMARY, weighted_ensemble=ensemble).model_backbones == expected
    assert RunSummary(weighted_ensemble=ensemble).model_backbones == []


def test_without_a_file_the_summary_is_empty(tmp_path):
    assert read_summary(tmp_path / "summary.json") == RunSummary()


def test_a_number_that_was_not_finite_is_read_as_nan(tmp_path):
    step = AblationScores(
        name="plain CNN",
        config={},
        epochs=1,
        train_accuracy=0.5,
        val_accuracy=math.inf,
        best_val_accuracy=0.5,
        best_epoch=1,
        seconds=1.0,
    )
    RunFolder(tmp_path).write_summary(RunSummary(ablation=[step]))
    assert '"val_accuracy": null' in (tmp_path / "summary.json").read_text()
    summary = read_summary(tmp_path / "summary.json")
    assert summary.ablation is not None
    assert math.isnan(summary.ablation[0].val_accuracy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"best": {"trial": 3}}, "best.name: Field required"),
        ({"stages": {"data": "soon"}}, "stages.data: Input should be a valid number"),
        ({"kfold": []}, "kfold: Input should be a dictionary or an instance of KFoldScores"),
        ({"ablation": [{}]}, "ablation.0.name: Field required"),
        ([], "the whole: Input should be a dictionary"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, content, message):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FolderError) as caught:
        read_summary(path)
    assert str(caught.value).startswith(f"{path} is damaged: {message}")
    assert "\n" not in str(caught.value)
