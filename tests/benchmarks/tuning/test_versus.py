"""Cells are planned, resumed and scored as they should be, and the report compares fairly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.harness.reporting import Report
from benchmarks.harness.workbench import generate_images
from benchmarks.tuning import versus, versus_report
from benchmarks.tuning.competitors import commands, fixed_finetuning
from benchmarks.tuning.competitors.job import Job, read_job
from benchmarks.tuning.versus_cells import (
    ALL,
    Cell,
    append_record,
    pending,
    plan_cells,
    read_records,
    run_process,
    score,
)
from benchmarks.tuning.versus_report import group, interval
from benchmarks.tuning.versus_sets import GENERATED, ImageSet, load_set, split_once

CELL = Cell("tools", "10", 0, 300.0, "ours")


def record(
    competitor: str, accuracy: float | None, set_name: str = "a", seed: int = 0, **other: Any
) -> dict[str, Any]:
    takes_time = commands.COMPETITORS[competitor].takes_time
    return {
        "set": set_name,
        "images": ALL,
        "seed": seed,
        "seconds": 300.0 if takes_time else None,
        "competitor": competitor,
        "accuracy": accuracy,
        "log_loss": None if accuracy is None else 1 - accuracy,
        "n": 100,
        "taken": 100.0,
        "error": "it failed" if accuracy is None else None,
        "commit": "abc",
        "load": 1.0,
        **other,
    }


def job(tmp_path: Path, **changed: Any) -> Job:
    values: dict[str, Any] = {
        "images": str(tmp_path / "images"),
        "model": str(tmp_path / "network.pt"),
        "weights": None,
        "backbones": ("mobilenet_v2",),
        "seconds": 300.0,
        "seed": 1,
        "image_size": 64,
    }
    return Job(**{**values, **changed})


def test_who_takes_no_time_is_run_once_for_all_times() -> None:
    cells = plan_cells(["tools"], ["10", ALL], [0, 1], [300.0, 600.0], ["probe", "ours"])
    assert len(cells) == len(set(cells)) == 4 * (1 + 2)
    assert {c.seconds for c in cells if c.competitor == "probe"} == {None}
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)  # of one seed, all sets first


def test_what_failed_and_what_is_torn_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cells.jsonl"
    failed, torn = Cell("a", ALL, 0, 9.0, "fixed"), Cell("a", ALL, 0, 9.0, "random")
    for cell, error in ((CELL, None), (failed, "no memory")):
        append_record(path, {**vars(cell), "error": error})
    with path.open("a") as file:
        file.write('{"set": "a", "ima')
    assert list(pending([CELL, failed, torn], read_records(path))) == [failed, torn]
    append_record(path, {**vars(failed), "error": None})  # begins a line of its own
    assert list(pending([CELL, failed, torn], read_records(path))) == [torn]


def test_only_selects_and_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    settings = versus.Settings(("a", "b"), ("10", ALL), (0, 1), (9.0,), 64, None, None, ())
    chosen = versus.choose_cells(settings, ["set=b", "seed=1", "competitor=ours,fixed"], False)
    assert {(c.set, c.seed, c.competitor) for c in chosen} == {("b", 1, "fixed"), ("b", 1, "ours")}
    assert {c.images for c in chosen} == {"10", ALL}
    for text, message in (("set=c", "there is no set 'c'"), ("sets=a", "--only takes set=,")):
        with pytest.raises(SystemExit, match="2"):
            versus.choose_cells(settings, [text], False)
        assert message in capsys.readouterr().err
    names = {c.competitor for c in versus.choose_cells(settings, [], False)}
    assert names == commands.COMPETITORS.keys() - {commands.AUTOGLUON}


def test_the_test_images_are_the_same_for_every_seed(tmp_path: Path) -> None:
    images = split_once(generate_images(tmp_path / "all", 40, 2))
    assert not set(images.train.paths) & set(images.test.paths)
    assert [int((images.test.labels == label).sum()) for label in (0, 1)] == [6, 6]
    few, others = images.take(5, seed=0), images.take(5, seed=1)
    assert few.test.paths == others.test.paths == images.test.paths
    assert set(few.train.paths) != set(others.train.paths)
    assert few.train.paths == images.take(5, seed=0).train.paths
    assert [int((few.train.labels == label).sum()) for label in (0, 1)] == [5, 5]
    assert images.take(None, seed=1) is images
    few.link(tmp_path / "linked")
    for part, files in (("train", few.train), ("test", few.test)):
        linked = (tmp_path / "linked" / part).glob("*/*")
        assert {(path.parent.name, path.resolve()) for path in linked} == {
            (files.classes[label], path.resolve())
            for path, label in zip(files.paths, files.labels, strict=True)
        }
    assert load_set(GENERATED, None, tmp_path).train.classes == ("class0", "class1")


def test_scores_follow_the_classes_of_the_model(tmp_path: Path) -> None:
    images: ImageSet = split_once(generate_images(tmp_path, 20, 2))
    probabilities = np.full((6, 2), 0.1)
    probabilities[np.arange(6), 1 - images.test.labels] = 0.9  # the other way round
    found = score(images, probabilities, ["class1", "class0"])
    assert (found["accuracy"], found["n"]) == (1.0, 6)
    assert found["log_loss"] == pytest.approx(-np.log(0.9))
    assert score(images, probabilities, ["class0", "class1"])["accuracy"] == 0.0
    with pytest.raises(ValueError, match="the model's classes"):
        score(images, probabilities, ["class0", "class2"])


def test_a_process_says_why_it_failed(tmp_path: Path) -> None:
    def python(code: str) -> str | None:
        return run_process([sys.executable, "-c", code], 9.0, tmp_path / "log")

    assert python("print(1)") is None
    assert python("raise SystemExit('no weights')") == "exit code 1; no weights"


def test_a_process_that_overruns_by_far_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.tuning.versus_cells._MAX_EXTRA_SECONDS", 0.3)
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert run_process(sleeps, 0.1, tmp_path / "log") == "it was ended by force after 0.5 s"


def test_a_job_counts_the_time_since_its_process_was_started(tmp_path: Path) -> None:
    one = job(tmp_path)
    one.write(tmp_path / "job.json")
    assert read_job(str(tmp_path / "job.json")) == one
    code = (
        "import sys, time; from benchmarks.tuning.competitors.job import read_job; time.sleep(0.5);"
        "print(read_job(sys.argv[1]).seconds_left())"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, str(tmp_path / "job.json")]
    assert run_process(command, 9.0, log) is None
    assert 200 < float(log.read_text()) < 299.5
    assert job(tmp_path, seconds=None).seconds_left() == float("inf")


def test_commands_differ_only_where_the_competitors_do(tmp_path: Path) -> None:
    made = {
        name: one.command(job(tmp_path), tmp_path) for name, one in commands.COMPETITORS.items()
    }
    common = ["--data", "--seed", "--backbones", "--image-size", "--time-budget"]
    for name in ("ours", "random", "stock"):
        assert set(common) <= set(made[name]), name
    start = made["stock"].index("--data")
    assert made["stock"][start:] == made["ours"][made["ours"].index("--data") :]
    assert "patience=None" in (tmp_path / "random_space.py").read_text()
    assert made["first trial"].count("--backbones") == 1
    assert made["autogluon"][2:] == ["fit", str(tmp_path / "job.json")]


def test_intervals_are_over_sets() -> None:
    assert interval({"a": 0.01, "b": 0.03})[0] == pytest.approx(0.02)
    center, low, high = interval(dict.fromkeys("abcdef", 0.02))
    assert low == pytest.approx(center) == pytest.approx(high)
    assert np.isnan(interval({"a": 0.1})[1:]).all()
    assert np.isnan(interval({})).all()


def test_differences_ranks_and_wins() -> None:
    (results,) = group(
        [
            *(record("probe", 0.5, "a", seed) for seed in (0, 1)),
            *(record("ours", value, "a", seed) for seed, value in ((0, 0.6), (1, 0.8))),
            *(record("fixed", value, "a", seed) for seed, value in ((0, 0.6), (1, None))),
            *(record("probe", 0.9, "b"), record("ours", 0.8, "b")),  # without "fixed": no rank
        ]
    )
    by_set = results.differences("ours", "probe", "accuracy")
    assert by_set == {"a": pytest.approx(0.2), "b": pytest.approx(-0.1)}
    assert results.differences("fixed", "probe", "accuracy") == {"a": pytest.approx(0.1)}
    assert results.ranks() == {"probe": [3, 2], "fixed": [1.5, 3], "ours": [1.5, 1]}
    assert [results.n_wins(name) for name in ("probe", "fixed", "ours")] == [0, 1, 2]


def test_the_report_has_targets_and_a_figure(tmp_path: Path) -> None:
    records = [
        record(name, accuracy, set_name, taken=taken)
        for set_name in ("grocery", "flowers")
        for name, accuracy, taken in (
            ("probe", 0.5, 9.0),
            ("first trial", 0.5, 9.0),
            ("fixed", 0.55, 290.0),
            ("ours", 0.6, 301.0),
        )
    ]
    report = Report("versus", "")
    versus_report.fill_report(report, records)
    ratios = {ratio.name: (ratio.value, ratio.verdict) for ratio in report.ratios}
    assert ratios["ours minus probe, points, 5 min"] == (pytest.approx(10), "target ≥ 1: met")
    what = "ours minus first trial, points, 5 min, lower end of the interval"
    assert ratios[what] == (pytest.approx(10), "target ≥ 0: met")
    assert ratios["grocery, ours minus probe, points, 5 min"][1] == "target ≥ 12: MISSED"
    assert ratios["flowers, ours minus probe, points, 5 min"][1] == "target ≥ 4: met"
    assert ratios["mean rank of ours over the best other's, 5 min"] == (0.5, "target ≤ 1: met")
    rows = {row["competitor"]: row for row in next(iter(report.tables.values()))}
    assert [rows[name]["overran"] for name in ("probe", "fixed", "ours")] == [0, 0, 2]
    versus_report.draw(tmp_path / "versus.svg", records)
    drawn = (tmp_path / "versus.svg").read_text()
    assert "5 min" in drawn
    assert "first trial" in drawn


def test_report_alone_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["versus", "--report", "--out", str(out)])
    with pytest.raises(SystemExit, match="2"):
        versus.main()
    assert "has no cell" in capsys.readouterr().err
    for name in ("probe", "ours"):
        append_record(out.with_suffix(".jsonl"), record(name, 0.7))
    versus.main()
    assert json.loads(out.read_text())["cells"][1]["competitor"] == "ours"
    assert out.with_suffix(".svg").is_file()


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    factors = [fixed_finetuning.schedule(progress) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == [0.0, pytest.approx(0.5), pytest.approx(1.0), pytest.approx(0.5), 0.0]


def test_learning_rates_rise_towards_the_head() -> None:
    network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)))
    groups = fixed_finetuning.parameter_groups(network, ["4.weight", "4.bias"])
    lrs = [group["lr"] for group in groups]
    assert lrs == sorted(lrs)
    assert (lrs[0], lrs[-3], lrs[-1]) == (0.5**3 * 5e-4, 5e-4, 2e-3)
    assert [group["weight_decay"] > 0 for group in groups[:2]] == [True, False]


def test_a_network_takes_the_weights_that_there_are_and_a_new_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, _ = fixed_finetuning.create_network("mobilenet_v2", 1000, None)
    torch.save(trained.state_dict(), tmp_path / "mobilenet_v2.pth")
    network, head = fixed_finetuning.create_network("mobilenet_v2", 3, str(tmp_path))
    assert head == ["classifier.1.weight", "classifier.1.bias"]
    state = network.state_dict()
    assert state[head[0]].shape == (3, 1280)
    for name, value in trained.state_dict().items():
        if name not in head:
            torch.testing.assert_close(state[name], value)
    torch.save({"other": torch.zeros(1)}, tmp_path / "mobilenet_v2.pth")
    with pytest.raises(ValueError, match="the weights of mobilenet_v2 lack features"):
        fixed_finetuning.create_network("mobilenet_v2", 3, str(tmp_path))
