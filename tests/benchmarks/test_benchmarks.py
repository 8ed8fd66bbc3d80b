import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import reporting, workbench
from benchmarks.harness.reporting import ROOT, Ratio, Report, format_table
from benchmarks.models import feature_cache
from benchmarks.speed import many_images, scale, vs_ray_tutorial


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


SMOKES = (
    "step",
    "cache",
    "lpft",
    "memory",
    "overhead",
    "scale",
    "vs_tutorial",
    "gpu",
    "search_quality",
    "serve",
    "ensemble",
    "label_issues",
    "ood_score",
    "intervals",
    "calibration",
    "duplicates",
    "audit",
    "outside",
    "resize_mode",
)

LONG = (
    *("memory", "vs_tutorial", "gpu", "serve", "overhead", "scale"),
    *("lpft", "ensemble", "resize_mode"),
)
"""Left to `make test-long`: these twenty seconds each would take CI beyond its twenty minutes."""


@pytest.fixture(scope="module")
def smokes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, Future[subprocess.CompletedProcess[str]]]]]:
    """Of each benchmark that a test asks for, its JSON and its run; two run at a time."""
    folder = tmp_path_factory.mktemp("smokes")
    asked = {name for name in SMOKES for item in request.session.items if f"[{name}]" in item.name}
    running = {}
    with ThreadPoolExecutor(2) as pool:
        for name in SMOKES:
            if name in asked:
                out = folder / f"{name}.json"
                extra = ("--device", "cpu") if name == "gpu" else ()
                running[name] = out, pool.submit(run, name, "--smoke", "--out", out, *extra)
        yield running
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] if n in LONG else []) for n in SMOKES]
)
def test_smoke_prints_a_ratio_and_writes_json(
    name: str, smokes: dict[str, tuple[Path, Future[subprocess.CompletedProcess[str]]]]
) -> None:
    out, running = smokes[name]
    done = running.result()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\nratio  " in done.stdout
    content = json.loads(out.read_text())
    assert content["benchmark"] == name
    assert content["mode"] == "smoke"
    assert any(ratio["value"] is not None for ratio in content["ratios"])
    assert content["tables"]
    assert content["machine"]
    assert content["versions"]["ray"].startswith("2.")


@pytest.mark.slow
def test_gpu_without_one_says_so_and_ends_well() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("gpu")
    assert (done.returncode, done.stdout) == (0, "no CUDA device: nothing to measure\n")


def test_data_that_is_not_there_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        workbench.need_data(argparse.Namespace(data=tmp_path / "nowhere"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/nowhere holds no caltech101/101_ObjectCategories/;"
        " give the folder that does with --data\n"
    )


def test_default_data_that_is_not_there_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workbench, "DEFAULT_DATA", tmp_path)
    assert workbench.find_data(argparse.Namespace(data=None)) is None
    with pytest.raises(SystemExit) as stopped:
        workbench.need_data(argparse.Namespace(data=None))
    assert stopped.value.code == 2
    assert "needs real images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio("x", 10.0, 10.0), "target ≥ 10: met"),
        (Ratio("x", 9.9, 10.0), "target ≥ 10: MISSED"),
        (Ratio("x", 0.1, 0.1, at_least=False), "target ≤ 0.1: met"),
        (Ratio("x", 0.11, 0.1, at_least=False), "target ≤ 0.1: MISSED"),
        (Ratio("x", math.nan, 1.0), "target ≥ 1: not measured"),
        (Ratio("x", 3.0), ""),
    ],
)
def test_a_ratio_knows_its_target(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict == verdict


def test_a_table_aligns_its_columns() -> None:
    rows = [{"side": "ours", "seconds": 0.123456}, {"side": "theirs", "seconds": 12345.6}]
    assert format_table(rows) == "\n".join(
        ["  side    seconds", "  ours     0.1235", "  theirs   12,346"]
    )


def test_a_report_is_written_as_strict_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("x", "A claim.", ratios=[Ratio("a over b", math.nan, 2.0)])
    report.tables["T"] = [{"n": np.int64(3), "seconds": float("nan"), "path": tmp_path}]
    report.publish(argparse.Namespace(mode="smoke", out=tmp_path / "deep" / "x.json"))
    content = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert content["tables"]["T"] == [{"n": 3, "seconds": None, "path": str(tmp_path)}]
    assert content["ratios"][0]["value"] is None
    assert "ratio  a over b: –  target ≥ 2: not measured" in capsys.readouterr().out


def test_a_quick_run_never_takes_the_place_of_a_full_one() -> None:
    assert reporting._default_out("x", "quick") != reporting._default_out("x", "full")
    assert reporting._default_out("x", "smoke") is None


def test_a_list_schedule_gives_the_next_job_to_who_is_free_first() -> None:
    assert scale.list_schedule([3, 1, 1, 1], 2) == 3
    assert scale.list_schedule([1, 1, 1, 3], 2) == 4
    assert scale.list_schedule([], 2) == 0


def test_configurations_are_spread_over_the_depths_and_keep_their_order() -> None:
    configs = [{"freeze_depth": depth, "id": i} for i, depth in enumerate([0, 0, 0, 5, 5, 3])]
    chosen = vs_ray_tutorial.spread_over_depths(configs, 3)
    assert [config["id"] for config in chosen] == [0, 3, 5]
    assert vs_ray_tutorial.spread_over_depths(configs, 6) == configs


def test_configurations_are_the_same_every_time() -> None:
    work = vs_ray_tutorial.Work(24, 24, 8, 5, 224, None, ROOT, None, "", 2)
    configs = vs_ray_tutorial.draw_configs(work)
    assert configs == vs_ray_tutorial.draw_configs(work)
    assert len(configs) == 24
    assert {config["backbone"] for config in configs} == {"squeezenet1_0"}
    assert {config["freeze_depth"] for config in configs} == set(range(6))


def side(epoch_seconds: dict[int, list[list[float]]]) -> vs_ray_tutorial.Side:
    pairs = [(depth, each) for depth, trials in epoch_seconds.items() for each in trials]
    return vs_ray_tutorial.Side(
        0, 0, [{"freeze_depth": depth} for depth, _ in pairs], [each for _, each in pairs], 1, 1
    )


def test_extrapolation_is_our_epochs_times_their_seconds() -> None:
    work = vs_ray_tutorial.Work(4, 2, 8, 5, 224, None, ROOT, None, "", concurrent=2)
    ours = side({0: [[1, 1, 1], [1]], 5: [[1], [1]]})
    theirs = side({0: [[100, 110, 120]], 5: [[10]]})
    # One of two trials is left at each depth: half of our 4 epochs at 110 s, half of our 2 at 10 s.
    assert vs_ray_tutorial.extrapolate_seconds(work, ours, theirs) == (2 * 110 + 1 * 10) / 2


def test_images_are_chosen_by_the_share_of_their_class() -> None:
    labels = np.array([0] * 80 + [1] * 16 + [2] * 4)
    chosen = workbench.choose_stratified(labels, 25, seed=1)
    assert len(set(chosen.tolist())) == 25
    assert np.bincount(labels[chosen]).tolist() == [20, 4, 1]
    assert np.bincount(labels[workbench.choose_stratified(labels, 3, seed=1)]).tolist() == [1, 1, 1]


def test_an_interval_is_students() -> None:
    centre, low, high = feature_cache.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert centre == 3.0
    assert (low, high) == (pytest.approx(3 - 1.9632, abs=1e-3), pytest.approx(3 + 1.9632, abs=1e-3))


def test_studies_are_summarised_over_their_seeds() -> None:
    from benchmarks.models import studies

    def run(accuracy: float, gain: float | None) -> dict[str, object]:
        scores = {"n": 40, "accuracy": accuracy, "macro_f1": 0.9, "ece": 0.01}
        made = {"test": scores, "kfold": {"accuracy_mean": 0.95}, "stages": {"search": 120.0}}
        return made if gain is None else made | {"comparison": {"difference": gain}}

    probes = [{"held-out": 0.9}, {"held-out": 0.9, "external": 0.8}]
    row = studies.summarise("tools", [run(0.9, 0.02), run(1.0, None)], probes)
    assert (row["n"], row["runs"], row["minutes"]) == (40, 2, 2.0)
    assert row["held-out"] == "0.9500 ± 0.0707"
    assert (row["over trial 0"], row["external"]) == ("0.0200", "–")
    assert (row["probe, held-out"], row["probe, external"]) == ("0.9000 ± 0.0000", "0.8000")
    assert {f"{name}.py" for name in studies.STUDIES} <= {
        path.name for path in (ROOT / "spaces").glob("*.py")
    }


def test_generated_images_are_one_a_name_and_all_different(tmp_path: Path) -> None:
    n_bytes = many_images.generate(tmp_path, 60, 16)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == len({file.name for file in files}) == 60
    assert len({file.read_bytes() for file in files}) == 60
    assert sum(file.stat().st_size for file in files) == n_bytes
    assert len({file.parent for file in files}) == 20
