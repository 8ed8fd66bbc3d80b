"""`python -m search.run`: mistakes in the command line, and whole runs on small images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from optuna.trial import TrialState
from PIL import Image
from torchvision.models import get_model

from search.cluster.session import SessionError
from search.console.formatting import METRIC_NAMES, metric_text
from search.data.image_files import DataError
from search.pipeline.preflight import RunPlan
from search.pipeline.request import parse_request
from search.run import main
from search.runs.run_folder import STUDY, RunFolder
from search.runs.summary import DataCounts, Evaluations
from search.runs.tables import read_rows
from search.tuning.study import BEST, load_study
from spaces.rules import Metric
from trainables.models.digest import model_digest
from trainables.models.model import load_model

ROOT = Path(__file__).parents[2]

SPACE = """
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "lr": FloatDistribution(1e-3, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "augment": FloatDistribution(0.0, 0.5),
        "batch_size": 16,
    },
    image_size=32,
    epochs=3,
    trials=4,
    folds=2,
    views=3,
)
"""

THREE_MISTAKES = """
from optuna.distributions import CategoricalDistribution, FloatDistribution
from spaces.base import Space
from spaces.sources import digits

SPACE = Space(
    source=digits(),
    params={
        "backbone": CategoricalDistribution(["resnet81"]),
        "lrr": FloatDistribution(1e-4, 1e-2),
        "dropout": FloatDistribution(0.0, 1.5),
    },
)
"""


def make_images(folder: Path, counts: dict[str, int], size: int = 40, seed: int = 0) -> Path:
    """Draw images whose class is their colour: red ones, green ones and so on."""
    generator = torch.Generator().manual_seed(seed)
    for channel, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(0, 90, (size, size, 3), generator=generator, dtype=torch.uint8)
            pixels[:, :, channel] += 110
            Image.fromarray(pixels.numpy()).save(folder / name / f"{index:03}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", {"red": 30, "grün und blau": 30, "blue": 24})


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    return path


def run_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "search.run", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "spaces/digitz.py"], "did you mean 'spaces/digits.py'?"),
        (["--folds", "1"], "--folds: must be a whole number >= 2, but got '1'"),
        (["--trials", "0"], "--trials: must be a whole number >= 1, but got '0'"),
        (["--backbones", "resnet81"], "there is no backbone 'resnet81'; did you mean 'resnet18'?"),
        (["--space", "spaces/tools.py"], "give --data DIR"),
        (["--name", "a/b"], "a run's name is made of at most 60 letters, digits, '.', '_' and '-'"),
        (["--name", ""], "digits, '.', '_' and '-', but got ''"),
        (["--time-budget", "soon"], "must be a time such as 90s, 30m, 1h30m or 2d"),
        (["--storage", "results"], "--storage must be a URL such as s3://bucket/folder"),
        (["--storage", "/proc/nowhere"], "--storage /proc/nowhere cannot be written to"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    check_refused([*arguments, "--out", str(tmp_path / "out")], message, tmp_path, capsys)


def test_all_mistakes_of_a_space_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "three.py"
    path.write_text(THREE_MISTAKES)
    shown = check_refused(["--space", str(path)], "did you mean 'resnet18'?", tmp_path, capsys)
    assert "unknown parameter 'lrr'; did you mean 'lr'?" in shown
    assert "0 <= dropout <= 0.95 must hold, but got 1.5" in shown


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no images"),
        ({"red": 9}, "there must be two classes or more"),
        ({"red": 9, "green": 2}, "every class needs at least 3 images"),
    ],
)
def test_bad_images(
    counts: dict[str, int],
    message: str,
    space_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad").mkdir()
    make_images(tmp_path / "bad", counts)
    arguments = ["--space", str(space_file), "--data", str(tmp_path / "bad")]
    check_refused([*arguments, "--out", str(tmp_path / "out")], message, tmp_path, capsys)


def test_missing_weights(
    space_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    arguments = ["--space", space_file, "--data", images, "--backbones", "resnet18"]
    arguments += ["--weights", tmp_path / "none", "--out", tmp_path / "out"]
    shown = check_refused(list(map(str, arguments)), "no resnet18.pth in it", tmp_path, capsys)
    assert 'weights="none"' in shown


def test_unwritable_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "results")
    check_refused(["--out", out], "--out must be a folder", tmp_path, capsys)


def test_name_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r" / "mine").mkdir(parents=True)
    (tmp_path / "r" / "mine" / "diary.txt").touch()
    arguments = ["--out", str(tmp_path / "r"), "--name", "mine"]
    check_refused(arguments, "there is a run called 'mine'", tmp_path, capsys)


def test_resume_of_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(["--resume", str(tmp_path)], "is no run", tmp_path, capsys)


def check_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    """Check that a request is refused: exit code 2, one message, no Ray, no new folder."""
    was_running = ray.is_initialized()
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    shown = capsys.readouterr().err
    assert code == 2
    assert shown.startswith("error: ")
    assert shown.count("error: ") == 1
    assert message in shown
    assert "Traceback" not in shown
    assert ray.is_initialized() == was_running
    assert not (tmp_path / "out").exists()
    return shown


def begun(tmp_path: Path, space: str = SPACE, **request: Any) -> Path:
    """Create the folder of a run whose first stage has not begun; return it."""
    (tmp_path / "space.py").write_text(space)
    arguments = ["--space", str(tmp_path / "space.py"), "--out", str(tmp_path), "--name", "run"]
    parsed = parse_request(arguments)
    folder = RunFolder.create(tmp_path, "run")
    folder.write_origin(replace(parsed, **request))
    return folder.path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the error of a request that is refused; a run that it resumes stays as it was."""
    words = [str(argument) for argument in arguments]
    run = Path(words[words.index("--resume") + 1]) if "--resume" in words else None
    before = contents(run)
    assert main(words) == 2
    assert contents(run) == before
    return capsys.readouterr().err


def contents(run: Path | None) -> dict[Path, bytes]:
    """Return the contents of all files of a run."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} if run else {}


def test_resume_with_a_space_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path)
    (tmp_path / "space.py").write_text(SPACE.replace("epochs=3", "epochs=5"))
    shown = refused(capsys, "--resume", run)
    assert "epochs was 3 and is 5" in shown
    assert f"--space {run / 'space.py'}" in shown
    other = tmp_path / "other.py"
    other.write_text(SPACE.replace('"batch_size": 16', '"batch_size": 32'))
    assert "params was" in refused(capsys, "--resume", run, "--space", other)
    # With the space as it was, the next mistake is that there is no --data.
    assert "give --data DIR" in refused(capsys, "--resume", run, "--space", run / "space.py")
    (tmp_path / "space.py").write_text(SPACE + "# a remark changes nothing\n")
    assert "give --data DIR" in refused(capsys, "--resume", run)
    (run / "space.py").write_text(SPACE.replace("trials=4", "trials=9"))
    assert "was changed since the run began" in refused(capsys, "--resume", run)
    assert run.is_dir()


def test_resume_of_a_run_that_has_lost_what_it_began_with(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path, data=images)
    folder = RunFolder.open(run)
    counts = {"n": 9, "train": 9, "val": 0, "test": 0, "excluded": 0, "unused_files": 0}
    data = DataCounts(classes=["red", "blue"], **counts, excluded_by_request=2)
    folder.write_summary(replace(folder.summary, data=data))
    (run / "excluded.csv").write_text("image\nred/001.png\n")
    assert refused(capsys, "--resume", run) == (
        f"error: {run}/excluded.csv is damaged: it names 1 of the 2 images that were excluded; put"
        " a copy of it back, or begin a new run\n"
    )
    (run / "excluded.csv").write_text("image\nred/001.png\nred/002.png\n")
    (run / "trials" / "0").mkdir(parents=True)
    (run / "trials" / "0" / "progress.csv").touch()
    assert f"{run}/study.journal is missing" in refused(capsys, "--resume", run)
    for content in ("[]\n[]\n", "no journal\n{}\n", '{"op_code": 4}\n{}\n'):
        (run / "study.journal").write_text(content)
        assert refused(capsys, "--resume", run) == (
            f"error: {run}/study.journal is damaged: put a copy of it back, or begin a new run\n"
        )


def test_resume_with_other_images(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path, space=SPACE.replace("folder()", "folder(classes=('red', 'blue'))"))
    other = make_images(tmp_path / "other", {"red": 8, "green": 8})
    assert "lacks 'blue'" in refused(capsys, "--resume", run, "--data", other)
    missing = tmp_path / "nowhere"
    assert "nowhere" in refused(capsys, "--resume", run, "--data", images, "--external", missing)
    assert RunFolder.open(run).environment.request.data is None


@pytest.mark.parametrize("log", [None, "2026-01-31T12:00:00Z INFO node search begins\n"])
def test_resume_that_is_refused_when_its_images_are_decoded(
    tmp_path: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log: str | None,
) -> None:
    run = begun(tmp_path, data=images)
    if log is not None:
        (run / "run.log").write_text(log)

    def find_other_images(*_: object) -> None:
        assert "arguments: " in (run / "run.log").read_text()
        raise DataError("the images are not those that the run began with")

    monkeypatch.setattr("search.api.execution.ray_session", lambda *_, **__: nullcontext())
    monkeypatch.setattr("search.api.execution._probes_here", lambda run_plan: True)
    monkeypatch.setattr("search.pipeline.flow.prepare_data", find_other_images)
    assert "are not those" in refused(capsys, "--resume", run, "--trials", "9")


def test_resume_of_an_older_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path)
    environment = run / "environment.json"
    environment.write_text(environment.read_text().replace('"format": 3', '"format": 2'))
    shown = refused(capsys, "--resume", run)
    assert shown == (
        f"error: {run} is a run of format 2, and this version reads format 3: use the version that"
        " wrote it, or begin a new run\n"
    )


def test_resume_with_what_a_run_cannot_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path, backbones=("cnn",), seed=3)
    shown = refused(capsys, "--resume", run, "--backbones", "tinynet")
    assert "--backbones of a run cannot change: it began with cnn, but got tinynet" in shown
    shown = refused(capsys, "--resume", run, "--seed", "4")
    assert "--seed of a run cannot change: it began with 3, but got 4" in shown
    for option, value in (("limit", 20), ("image-size", 48), ("classes", "a,b"), ("set", "lr=0.1")):
        shown = refused(capsys, "--resume", run, f"--{option}", value)
        assert shown == (
            f"error: --{option} of a run cannot change: it began without it, but got {value}; omit"
            " the option, or begin a new run\n"
        )


@pytest.mark.usefixtures("ray_session")
def test_weights_that_do_not_fit_leave_no_folder(
    space_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "squeezenet1_1.pth"
    torch.save({"classifier.1.weight": torch.zeros(2, 2)}, weights)
    arguments = ["--space", space_file, "--data", images, "--backbones", "squeezenet1_1"]
    arguments += ["--weights", tmp_path / "weights", "--out", tmp_path / "out", "--name", "run"]
    assert str(weights) in refused(capsys, *arguments)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("ray_session")
def test_too_few_readable_images_leave_no_folder(
    space_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((images / "blue").iterdir())[1:]:
        path.write_bytes(b"no image")
    arguments = ["--space", space_file, "--data", images, "--backbones", "tinynet"]
    shown = refused(capsys, *arguments, "--out", tmp_path / "out", "--name", "run")
    assert "every class needs at least 3 images" in shown
    assert "'blue' has 1" in shown
    assert "(23 files could not be read, such as blue/001.png: " in shown
    assert str(tmp_path / "out") not in shown, "the folder is deleted"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("ray_session")
def test_a_refused_run_leaves_nothing_in_storage(
    space_file: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found_late(run_plan: RunPlan, *_: object) -> int:
        assert (run_plan.folder.path / "run.log").is_file()
        raise DataError("no image can be read")

    monkeypatch.setattr("search.pipeline.flow.run", found_late)
    storage, out = tmp_path / "storage", tmp_path / "out"
    arguments = ["--space", space_file, "--storage", storage, "--out", out, "--name", "run"]
    assert "give --data DIR" in refused(capsys, *arguments)
    assert "no image can be read" in refused(capsys, *arguments, "--data", images)
    assert list(storage.iterdir()) == []
    assert list(out.iterdir()) == []


def test_a_run_of_the_same_name_in_storage(
    space_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, storage = begun(tmp_path), tmp_path / "storage"
    shutil.copytree(run, storage / "run")
    before = sorted(storage.rglob("*"))
    out = tmp_path / "out"
    arguments = ["--space", space_file, "--storage", storage, "--out", out, "--name", "run"]
    assert refused(capsys, *arguments) == (
        f"error: there is a run called 'run' in {storage}: give another --name, or resume it with"
        f" --resume {out}/run --storage {storage}\n"
    )
    # What a refused --resume fetched from storage is removed.
    resumed = ["--resume", out / "run", "--storage", storage]
    assert "--seed of a run cannot change" in refused(capsys, *resumed, "--seed", "4")
    assert not (out / "run").exists()
    assert sorted(storage.rglob("*")) == before


@pytest.mark.usefixtures("ray_session")
def test_other_files_in_storage_are_never_deleted(
    space_file: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new run takes no folder that holds something: as a refused one it would delete it."""
    storage, out = tmp_path / "storage", tmp_path / "out"
    photo = storage / "run" / "holiday" / "photo.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"not ours")
    arguments = ["--space", space_file, "--data", images, "--storage", storage, "--out", out]
    shown = refused(capsys, *arguments, "--name", "run")
    assert f"the folder 'run' in {storage} must be empty or new" in shown
    assert "give another --name or --storage" in shown
    assert photo.read_bytes() == b"not ours"


@pytest.mark.usefixtures("ray_session")
def test_a_mistake_that_is_found_late_deletes_no_trials(
    space_file: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found_late(run_plan: RunPlan, *_: object) -> int:
        (run_plan.folder.path / STUDY).touch()
        raise SessionError("no node joined")

    monkeypatch.setattr("search.pipeline.flow.run", found_late)
    arguments = ["--space", space_file, "--data", images, "--out", tmp_path, "--name", "run"]
    assert main([str(argument) for argument in (*arguments, "--backbones", "tinynet")]) == 2
    assert (tmp_path / "run" / STUDY).is_file()
    shown = capsys.readouterr()
    assert "error: no node joined" in shown.err
    assert f"resume: python -m search.run --resume {tmp_path / 'run'}" in shown.out


# --- the flow ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_whole_flow(space_file: Path, images: Path, tmp_path: Path) -> None:
    """A run with damaged files among the images, and an external test set."""
    whole = (images / "red" / "000.png").read_bytes()
    (images / "red" / "cut short.png").write_bytes(whole[: len(whole) // 2])
    (images / "red" / "empty.jpg").write_bytes(b"")
    (images / "blue" / "notes.jpg").write_text("no image")
    outside = make_images(tmp_path / "outside", {"red": 3, "grün und blau": 3}, seed=1)
    done = run_command(
        "--space", space_file, "--data", images, "--external", outside,
        "--out", tmp_path, "--name", "run", "--seed", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr == ""
    assert done.stdout.count("warning: 3 files are not used") == 1

    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["search"]["trials"] == 4
    assert summary["search"]["failed"] == 0
    assert set(summary["best"]) >= {"config", "val_accuracy", "epoch"}
    assert summary["kfold"]["folds"] == 2
    assert summary["test"]["accuracy"] >= 0.9
    low, high = summary["test"]["accuracy_ci95"]
    assert low <= summary["test"]["accuracy"] <= high
    assert summary["external"]["n"] == 6
    assert 0 <= summary["external"]["accuracy"] <= summary["external"]["top3_accuracy"] <= 1
    assert set(summary["stages"]) >= {
        *("data", "linear_probe", "feature_cache", "search", "cross_validation", "evaluation"),
        *("tensorboard", "report"),
    }
    for name in (
        "space.py", "environment.json", "split.csv", STUDY, "trials.csv", "run.log", "model.pt",
        "report.html", "folds/folds.csv", "folds/oof_predictions.csv", "test_predictions.csv",
        "external_predictions.csv",
    ):  # fmt: skip
        assert (run / name).is_file(), name

    assert {row["image"] for row in read_rows(run / "audit.csv")} == {
        "red/cut short.png",
        "red/empty.jpg",
        "blue/notes.jpg",
    }

    split = {row["image"]: row["split"] for row in read_rows(run / "split.csv")}
    assert len(split) == 84
    out_of_fold = [row["image"] for row in read_rows(run / "folds" / "oof_predictions.csv")]
    assert sorted(out_of_fold) == sorted(name for name in split if split[name] != "test")

    study = load_study(run)
    assert study is not None
    states = [trial.state for trial in study.trials]
    assert len(states) == 4
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in study.trials:
        assert trial.intermediate_values
        if trial.state == TrialState.COMPLETE:
            assert trial.value == pytest.approx(max(trial.intermediate_values.values()))
            assert trial.value == pytest.approx(trial.user_attrs[BEST]["val_accuracy"], abs=1e-6)

    image = images / "blue" / "001.png"
    shown = subprocess.run(
        [sys.executable, "-m", "search.predict", run, image],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert str(image) in shown
    assert shown.split(str(image))[1].split()[0] == "blue"


@pytest.mark.long
def test_same_seed_same_numbers(space_file: Path, images: Path, tmp_path: Path) -> None:
    outputs = []
    for name in ("one", "two"):
        done = run_command(
            "--space", space_file, "--data", images, "--out", tmp_path, "--name", name,
            "--max-concurrent", "1", "--trials", "3", "--quiet",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        run = tmp_path / name
        rows = read_rows(run / "trials.csv")
        trials = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        predictions = (run / "test_predictions.csv").read_text()
        outputs.append((trials, predictions, (run / "split.csv").read_text()))
    assert outputs[0] == outputs[1]
    before = RunFolder.open(run).summary
    predictions = (run / "test_predictions.csv").read_text()
    done = run_command("--resume", run)
    assert done.stdout.count("the test set is not evaluated again: the model is unchanged") == 1
    after = RunFolder.open(run).summary
    assert before.evaluation is not None
    assert before.evaluation.times == 1
    for name in ("evaluation", "best", "kfold", "calibration", "test", "comparison", "samples"):
        assert getattr(after, name) == getattr(before, name), name
    assert (run / "test_predictions.csv").read_text() == predictions


@pytest.mark.long
@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_the_metric_rules_a_run_on_imbalanced_images(
    space_file: Path, tmp_path: Path, metric: Metric
) -> None:
    images = make_images(tmp_path / "images", {"red": 60, "green": 20, "blue": 12})
    words = ("--space", space_file, "--data", images, "--out", tmp_path, "--name", "run")
    ended = run_command(*words, "--metric", metric, "--max-concurrent", "1")
    assert ended.returncode == 0, ended.stderr
    assert METRIC_NAMES[metric] in ended.stdout
    folder = RunFolder.open(tmp_path / "run")
    summary, study = folder.summary, load_study(folder.path)
    assert summary.settings is not None
    assert summary.settings.metric == metric
    assert study is not None
    for trial in study.trials:
        best = trial.user_attrs[BEST]
        rows = read_rows(folder.path / "trials" / str(trial.number) / "progress.csv")
        field, sign = ("val_loss", -1) if metric == "log_loss" else ("val_macro_f1", 1)
        scores = [float(row["val_score"]) for row in rows]
        assert scores == pytest.approx([sign * float(row[field]) for row in rows], abs=1e-6)
        assert best["val_score"] == max(scores)
        assert trial.intermediate_values[1] == pytest.approx(scores[0], abs=1e-6)
    assert summary.kfold is not None
    assert summary.test is not None
    value, _ = summary.test.of_metric(metric)
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    assert f"{metric_text(metric, value)} test {METRIC_NAMES[metric]}" in page
    winner = max(summary.kfold.finalists, key=lambda one: one.score)
    assert summary.best is not None
    assert summary.kfold.score == winner.score
    refused = run_command("--resume", folder.path, "--metric", "roc_auc")
    assert (refused.returncode, f"it began with {metric}" in refused.stderr) == (2, True)


@pytest.mark.long
def test_finished_run_is_extended(space_file: Path, tmp_path: Path) -> None:
    """A run on sixteen images, whose test set is opened again only for another model.

    One of its backbones has learned nothing, and leaves the search.
    """
    images = make_images(tmp_path / "images", {"red": 8, "blue": 8})
    weights = tmp_path / "weights"
    weights.mkdir()
    untrained = get_model("squeezenet1_1", weights=None).state_dict()
    nothing = {key: torch.zeros_like(value) for key, value in untrained.items()}
    torch.save(nothing, weights / "squeezenet1_1.pth")
    first = run_command(
        "--space", space_file, "--data", images, "--out", tmp_path, "--name", "run",
        "--trials", "2", "--scheduler", "none",
        "--weights", weights, "--backbones", "squeezenet1_1,tinynet,cnn",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    run = tmp_path / "run"
    assert "squeezenet1_1 leaves the search: " in first.stdout
    scores = RunFolder.open(run).summary.linear_probe
    assert scores is not None
    assert list(scores) == ["tinynet", "squeezenet1_1"]
    assert scores["tinynet"].excluded is None
    (weights / "squeezenet1_1.pth").unlink()  # what has left needs none
    early, late = first.stdout.split("accuracy   95% CI")
    assert "warning: 4 test images, fewer than 30: even with all of them correct" in early
    assert "few images    4 test images, fewer than 30: the accuracy could be" in late
    summary = RunFolder.open(run).summary
    assert summary.data is not None
    assert summary.test is not None
    assert (summary.data.test, summary.test.n, len(summary.data.warnings)) == (4, 4, 3)
    models = [model_digest(load_model(run / "model.pt"))]
    assert summary.evaluation == Evaluations(times=1, models=models)

    more = run_command("--resume", run, "--trials", "3")
    assert more.returncode == 0, more.stderr
    assert RunFolder.open(run).summary.linear_probe == scores, "the same backbones are searched"
    assert {row["backbone"] for row in read_rows(run / "trials.csv")} <= {"tinynet", "cnn"}
    model = model_digest(load_model(run / "model.pt"))
    assert ("is not evaluated again" in more.stdout) == (model in models)
    assert ("evaluated 2 times, by 2 models" in more.stdout) == (model not in models)
    models += [model] if model not in models else []
    assert RunFolder.open(run).summary.evaluation == Evaluations(times=len(models), models=models)
    assert [row["state"] for row in read_rows(run / "trials.csv")] == ["complete"] * 3
    before = contents(run)
    os.utime(images / "red" / "004.png")  # a copy is the same image
    shutil.copyfile(images / "blue" / "005.png", images / "red" / "005.png")
    other = run_command("--resume", run, "--trials", "4")
    assert other.returncode == 2
    assert "the images are not those that the run began with" in other.stderr
    assert "other contents under the same names: red/005.png; restore" in other.stderr
    assert contents(run) == before


NOTHING_CAN_BE_DRAWN = """
import sys
from unittest.mock import patch

from search.run import main

DRAWINGS = (
    "search.pipeline.prepare._save_duplicates",
    "search.pipeline.evaluate.save_samples",
    "search.pipeline.flow.run_ablation",
    "search.pipeline.flow.show_result",
    "search.pipeline.flow.RunBoard.describe",
    "search.pipeline.flow.RunBoard.show_augmentation",
    "search.pipeline.flow.RunBoard.show_model",
    *(
        f"search.pipeline.trials.TrialBoards.{name}"
        for name in ("catch_up", "trial_started", "trial_epoch", "trial_ended", "close")
    ),
    "search.console.progress.Progress.trial_epoch",
    "search.reporting.page.best_first",
)

for name in DRAWINGS:
    patch(name, side_effect=ValueError("max() arg is an empty sequence")).start()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_no_drawing_ends_a_run(space_file: Path, tmp_path: Path) -> None:
    """All that shows results raises: the run ends well, with a model and a page of gaps."""
    space_file.write_text(SPACE.replace("views=3", "views=3, ablation=True"))
    images = make_images(tmp_path / "images", {"red": 12, "blue": 12})
    words = ["--space", space_file, "--data", images, "--external", images / "red"]
    words += ["--out", tmp_path, "--name", "run", "--trials", "1", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_CAN_BE_DRAWN, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    run = tmp_path / "run"
    assert done.returncode == 0, done.stdout + done.stderr
    missing = re.findall(r"warning: (.*) is missing: max\(\) arg is an empty", done.stdout)
    assert sorted(missing) == sorted(set(missing))
    assert len(missing) == 11, missing
    assert RunFolder.open(run).summary.test is not None
    assert load_model(run / "model.pt").card.n_members == 2
    assert "the page is missing: max() arg" in (run / "report.html").read_text()
    assert (run / "run.log").read_text().count("ValueError: max()") > len(missing)
