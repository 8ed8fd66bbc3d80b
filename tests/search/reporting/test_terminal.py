import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from search.evaluation.comparison import compare_models
from search.reporting.sentences import describe_evaluations, describe_gain, of_images
from search.reporting.terminal import result_line, show_result
from search.runs.summary import (
    BestModel,
    Calibration,
    CalibrationChange,
    CalibrationScores,
    CenterCropScores,
    DataCounts,
    Evaluations,
    ExternalScores,
    KFoldScores,
    LabelIssueCounts,
    ProbeScore,
    RunSummary,
    SearchCounts,
)
from tests.fixtures.handmade_run import SETTINGS, scores

CONFIG = {"backbone": "cnn", "lr": 0.00123456, "freeze_depth": 2, "mixup": 0.0}
CALIBRATION = Calibration(
    temperature=1.5,
    applied=True,
    fitted_temperature=1.5,
    log_loss_gain_se=0.004,
    out_of_fold=CalibrationChange(
        n=100,
        before=CalibrationScores(ece=0.05, log_loss=0.2, bins=[]),
        after=CalibrationScores(ece=0.04, log_loss=0.199, bins=[]),
    ),
)


def best(**more: Any) -> BestModel:
    values = {"trial": 7, "name": "trial 7, 8 epochs", "config": CONFIG, "val_accuracy": 0.9912}
    return BestModel(**{**values, "epoch": 8, **more})


def kfold(center_crop: CenterCropScores | None = None) -> KFoldScores:
    return KFoldScores(
        folds=5,
        accuracy_mean=0.9811,
        accuracy_std=0.0042,
        accuracy_corrected=0.9791,
        accuracy_corrected_ci95=(0.9654, 0.9882),
        optimism=0.01,
        center_crop=center_crop,
        finalists=[],
    )


def summary(**more: Any) -> RunSummary:
    sections: dict[str, Any] = {
        "settings": SETTINGS,
        "search": SearchCounts(
            trials=12, complete=5, pruned=6, failed=1, unfinished=0, seconds=200.0
        ),
        "stages": {"search": 200.0, "cross_validation": 50.0},
        "test": scores([[79, 1], [0, 1]], ("a", "b"), (0.9612, 0.9987)),
        "kfold": kfold(),
        "best": best(),
    }
    return RunSummary(**{**sections, **more})


def shown(path: Path, width: int = 80, **more: Any) -> list[str]:
    """Return the lines that are printed."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_result(summary(**more), path, console)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_metric_comes_first_and_the_accuracy_stands_beside_it() -> None:
    test = replace(
        scores([[38, 2], [1, 39]], ("ant", "bee")),
        **{"log_loss": 0.1234, "log_loss_ci95": (0.1, 0.15)},
    )
    scored = replace(kfold(), score_corrected=-0.2, score_corrected_ci95=(-0.25, -0.15))
    lines = shown(
        Path("run"),
        width=120,
        settings=replace(SETTINGS, metric="log_loss"),
        **{"test": test, "kfold": scored, "best": best(val_score=-0.3)},
    )
    assert "log loss 95% CI accuracy 95% CI images" in lines
    for line in (
        "test set 0.1234 0.1000–0.1500 96.25% 83.50–98.60% 80",
        "5-fold cross-validation 0.2000 0.1500–0.2500 97.91% 96.54–98.82%",
        "best validation log loss 0.3000 99.12%",
    ):
        assert any(one.startswith(line) for one in lines), line


def test_accuracies_facts_files_and_the_next_steps() -> None:
    path = Path("results") / "run-1"
    lines = shown(path)
    for line in (
        "accuracy 95% CI images",
        "test set 98.77% 96.12–99.87% 81",
        "5-fold cross-validation 97.91% 96.54–98.82%",
        "best validation accuracy 99.12%",
        "model trial 7, 8 epochs: backbone cnn, lr 0.00123, freeze_depth 2",
        "search 12 trials: 5 complete, 6 pruned, 1 failed; 4 min 10 s in all",
        f"report {path}/report.html",
        f"model file {path}/model.pt",
        "next steps:",
        f"python -m search.predict {path} IMAGE…",
        f"python -m search.serve {path}",
        f"python -m search.report {path}",
        f"tensorboard --logdir {path}/tensorboard",
    ):
        assert line in lines
    assert not any("external" in line for line in lines)


def test_the_result_is_one_line_for_a_script() -> None:
    assert result_line(summary(), Path("my runs/1")) == (
        "accuracy=0.987654 ci95_low=0.961200 ci95_high=0.998700 n=81 run='my runs/1'"
    )
    by_loss = summary(
        settings=replace(SETTINGS, metric="log_loss"),
        test=replace(scores([[9, 1], [0, 0]], ("a", "b")), log_loss_ci95=(0.05, 0.2)),
    )
    assert result_line(by_loss, Path("r")) == (
        "log_loss=0.100000 ci95_low=0.050000 ci95_high=0.200000 accuracy=0.900000 n=10 run=r"
    )
    with pytest.raises(ValueError, match="only a finished run"):
        result_line(RunSummary(), Path("r"))


def test_a_linear_probe_has_no_parameters() -> None:
    probe = best(trial=None, name="linear probe of cnn", config={"backbone": "cnn", "C": 0.03})
    lines = shown(Path("run"), best=probe)
    assert "model linear probe of cnn: C 0.03" in lines
    assert "linear probe, cross-validated 99.12%" in lines
    assert not any("best validation accuracy" in line for line in lines)


def test_the_backbones_are_listed_with_the_reason_of_those_that_left() -> None:
    ranked = {
        "resnet18": ProbeScore(
            accuracy=0.81, val_accuracy=0.8, behind=0.0, behind_se=0.0, latency_ms=20.0
        ),
        "tinynet": ProbeScore(
            accuracy=0.6, behind=0.21, behind_se=0.02, log_loss=1.2345, latency_ms=1, excluded="far"
        ),
        "vgg16_bn": ProbeScore(excluded="no weights: [none]"),
    }
    lines = shown(Path("run"), width=100, linear_probe=ranked)
    assert "resnet18 81.00% 0.0 ± 0.0 20.0 ms yes" in lines
    assert "tinynet 60.00% 21.0 ± 2.0 1.234 1.0 ms no" in lines
    assert "without a linear probe, for reasons in the report: vgg16_bn" in lines
    alone = shown(Path("run"), linear_probe={"resnet18": ranked["resnet18"]})
    assert not any("resnet18 81.00%" in line for line in alone), "there was nothing to choose"


@pytest.mark.parametrize(
    ("labelled", "line"),
    [
        (True, "external test set 97.50% 87.10–99.56% 40"),
        (False, "external 41 images predicted, without labels"),
    ],
)
def test_the_external_test_set(labelled: bool, line: str) -> None:
    of_labelled = scores([[39, 1], [0, 0]], ("a", "b"), (0.871, 0.9956)) if labelled else None
    external = ExternalScores(
        n=41, n_labelled=40, n_near_duplicates=1, n_ood=None, scores=of_labelled
    )
    assert line in shown(Path("run"), external=external)


def test_the_gain_over_the_baseline_has_its_interval() -> None:
    labels = np.zeros(100, np.int64)
    model, baseline = np.repeat([0, 1], [94, 6]), np.repeat([0, 1], [84, 16])
    compared = summary(comparison=compare_models(labels, model, baseline))
    assert describe_gain(compared) == (
        "+10.0 points, 95% CI +3.8 to +16.3 (only the model correct: 10, only the baseline: 0,"
        " p = 0.00098): better beyond chance"
    )
    (line,) = [
        line for line in shown(Path("run"), comparison=compared.comparison) if "baseline" in line
    ]
    assert line.startswith("vs. baseline +10.0 points")


def test_the_test_images_have_their_power() -> None:
    labels = np.zeros(198, np.int64)
    known = compare_models(labels, labels, labels, expected_discordance=0.05)
    (line,) = [line for line in shown(Path("run"), comparison=known) if "power" in line]
    assert line == (
        "power 198 test images show a true difference of 4.2 points between model and baseline with"
        " a probability of 80%; a smaller one may go unnoticed"
    )
    unknown = compare_models(labels, labels, labels)
    assert not any("power" in line for line in shown(Path("run"), comparison=unknown))
    few = compare_models(labels[:3], labels[:3], labels[:3], expected_discordance=0.5)
    line = "power 3 test images cannot show a difference between model and baseline, however large"
    assert line in shown(Path("run"), comparison=few)


def test_there_is_no_gain_where_the_baseline_is_the_best() -> None:
    expected = "no gain: the baseline is the best model"
    assert describe_gain(summary(best=best(trial=0))) == expected


def test_results_that_are_missing_are_not_shown() -> None:
    assert describe_gain(RunSummary()) is None
    assert describe_gain(summary(best=best(trial=None))) is None
    lines = shown(Path("run"), calibration=replace(CALIBRATION, test=None))
    for label in ("vs. baseline", "centre crop", "calibration", "labels"):
        assert not any(line.startswith(label) for line in lines)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ((0.05, 0.2), (0.0123, 0.15), "log loss falls from 0.200 to 0.150, the ECE falls from"),
        ((0.01, 0.2), (0.0123, 0.15), "log loss falls from 0.200 to 0.150, the ECE rises from"),
        ((0.01, 0.1), (0.0123, 0.15), "log loss rises from 0.100 to 0.150, the ECE rises from"),
        ((0.01, 0.1), (0.0123, 0.1), "log loss stays at 0.100, the ECE rises from"),
    ],
)
def test_what_temperature_scaling_does_follows_from_the_figures(
    before: tuple[float, float], after: tuple[float, float], text: str
) -> None:
    first, second = (CalibrationScores(ece=e, log_loss=x, bins=[]) for e, x in (before, after))
    test = CalibrationChange(n=100, before=first, after=second)
    (line,) = [
        line
        for line in shown(Path("run"), 200, calibration=replace(CALIBRATION, test=test))
        if line.startswith("calibration")
    ]
    assert line == (
        f"calibration temperature 1.50: on the test set the {text} {before[0]:.2%} to 1.23%"
    )


def test_scaling_that_is_not_applied_claims_nothing() -> None:
    unscaled = replace(CALIBRATION, applied=False, temperature=1.0, test=CALIBRATION.out_of_fold)
    assert (
        "calibration no temperature scaling: cross-fitted, it does not clearly help: the"
        " out-of-fold log loss falls from 0.2000 to 0.1990, standard error 0.0040; on the test set"
        " the ECE is 5.00%"
    ) in shown(Path("run"), 200, calibration=unscaled)
    assert CALIBRATION.out_of_fold is not None
    few = replace(unscaled, out_of_fold=replace(CALIBRATION.out_of_fold, n=29))
    assert (
        "calibration no temperature scaling: fewer than 30 images to fit it on; on the test set the"
        " ECE is 5.00%"
    ) in shown(Path("run"), 200, calibration=few)


@pytest.mark.parametrize(
    ("enabled", "views"),
    [
        (True, "two views; "),
        (False, "one view: a second one does not clearly help; "),
    ],
)
def test_the_centre_crop(enabled: bool, views: str) -> None:
    center_crop = CenterCropScores(
        enabled=enabled,
        log_loss=0.04,
        log_loss_baseline=0.05,
        log_loss_gain_se=0.004,
        accuracy_mean=0.99,
        accuracy_mean_baseline=0.98,
    )
    assert (
        f"centre crop {views}out-of-fold log loss 0.040 with the enlarged centre as a second view,"
        " 0.050 without, standard error of the difference 0.004"
        in shown(Path("run"), width=200, kfold=kfold(center_crop))
    )


@pytest.mark.parametrize(
    ("n", "line"),
    [
        (0, "labels 0 possible label errors"),
        (1, "labels 1 possible label error: see run/folds/label_issues.csv"),
        (3, "labels 3 possible label errors: see run/folds/label_issues.csv"),
    ],
)
def test_possible_label_errors(n: int, line: str) -> None:
    issues = LabelIssueCounts(n=n, fraction=n / 300, pairs=[])
    assert line in shown(Path("run"), label_issues=issues)


@pytest.mark.parametrize("width", [80, 30])
def test_a_path_can_be_copied_whole(width: int) -> None:
    """However long it is, and whatever characters it has."""
    path = Path("my photos [old]") / ("deep " * 20).strip() / ":smile:"
    lines = shown(path, width)
    assert f"report {path}/report.html" in lines
    assert f"python -m search.predict '{path}' IMAGE…" in lines
    assert f"tensorboard --logdir '{path}/tensorboard'" in lines


def test_lines_are_folded_for_a_person_and_not_for_a_pipe() -> None:
    long = best(name="a long name " * 20)
    (piped,) = [line for line in shown(Path("run"), best=long) if line.startswith("model a long")]
    assert piped.endswith("freeze_depth 2")
    console = Console(file=io.StringIO(), width=60, force_terminal=True, highlight=False)
    show_result(summary(best=long), Path("run"), console)
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if "long name" in line]
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60


def test_the_table_fits_a_narrow_terminal() -> None:
    external = ExternalScores(
        n=9,
        n_labelled=9,
        n_near_duplicates=0,
        n_ood=None,
        scores=scores([[9, 0], [0, 0]], ("a", "b"), (0.7, 1.0)),
    )
    lines = shown(Path("run"), width=60, external=external)
    assert "external test set 100.00% 70.00–100.00% 9" in lines
    assert not any(re.search("…$", line) for line in lines if "external" in line)


@pytest.mark.parametrize(
    ("times", "models", "line"),
    [
        (1, ["a"], None),
        (2, ["a"], "the test set was evaluated 2 times, by the same model"),
        (
            3,
            ["a", "b"],
            "the test set was evaluated 3 times, by 2 models: figures of later ones are optimistic"
            " if the run was continued because of earlier ones",
        ),
    ],
)
def test_more_than_one_evaluation_of_the_test_set(
    times: int, models: list[str], line: str | None
) -> None:
    evaluation = Evaluations(times=times, models=models)
    assert describe_evaluations(evaluation) == line
    found = [text for text in shown(Path("run"), evaluation=evaluation) if "evaluated" in text]
    assert found == ([] if line is None else [f"evaluation {line}"])


def test_few_images_and_an_accuracy_of_100_percent() -> None:
    data = DataCounts(
        classes=["a", "b"],
        n=16,
        train=10,
        val=2,
        test=4,
        excluded=0,
        unused_files=0,
        excluded_by_request=0,
        warnings=["4 test images, fewer than 30", "2 validation images, fewer than 50"],
    )
    perfect = replace(kfold(), accuracy_corrected=1.0, accuracy_corrected_ci95=(0.7575, 1.0))
    test = scores([[2, 0], [0, 2]], ("a", "b"), (0.5101, 1.0))
    lines = shown(Path("run"), data=data, kfold=perfect, test=test, best=best(val_accuracy=1.0))
    for line in (
        "test set 100.00% 51.01–100.00% 4",
        "5-fold cross-validation 100.00% 75.75–100.00% 12",
        "best validation accuracy 100.00% 2",
        "few images 4 test images, fewer than 30",
        "2 validation images, fewer than 50",
    ):
        assert line in lines


def test_of_images_is_for_accuracies_that_are_shown_as_100_percent() -> None:
    assert of_images(0.9994, 4000) == ""
    assert of_images(0.9996, 2500) == " on 2,500 images, 95% CI 99.8–100.0%"
    assert of_images(1.0, 1) == " on 1 image, 95% CI 20.7–100.0%"


def test_an_unfinished_run_has_no_result() -> None:
    with pytest.raises(ValueError, match="only a finished run has a result to show"):
        show_result(RunSummary(), Path("run"), Console(file=io.StringIO()))
