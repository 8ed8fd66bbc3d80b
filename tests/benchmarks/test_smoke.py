"""Every benchmark runs, prints its ratios and writes its JSON; the figures mean nothing."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness.reporting import ROOT

IN_PROCESS = (
    *("data.audit", "data.near_duplicates", "models.calibration", "models.center_crop"),
    "models.probe_ensembles",
    *("models.feature_cache", "models.intervals", "models.label_issues", "models.lp_ft"),
    *("models.center_crop_rule", "models.selection_bias", "models.cached_views"),
    "models.fine_tuning",
    *("models.ood", "models.resize_mode", "models.tinynet", "speed.ensemble_inference"),
    "speed.depthwise",
    "speed.epoch",
)
"""Benchmarks that start neither Ray nor other programs: PyTorch is imported once for all."""

COMMANDS = (
    *("speed.gpu_sharing", "speed.many_images", "speed.memory", "speed.scale", "speed.serving"),
    *("speed.trial_overhead", "speed.vs_ray_tutorial", "tuning.search_quality"),
    "tuning.versus",
)
LONG = {
    *("speed.gpu_sharing", "speed.many_images", "speed.memory", "speed.scale", "speed.serving"),
    *("speed.trial_overhead", "speed.vs_ray_tutorial", "tuning.versus", "models.intervals"),
    *("speed.epoch", "speed.ensemble_inference", "models.tinynet", "models.center_crop"),
    *("models.probe_ensembles", "tuning.search_quality", "models.feature_cache"),
    *("models.fine_tuning", "models.resize_mode", "models.cached_views", "models.calibration"),
    "speed.depthwise",
}
"""Left to `make test-long`, as each takes several seconds."""


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def check_output(name: str, printed: str, out: Path) -> None:
    assert "\nratio  " in printed
    content = json.loads(out.read_text())
    assert content["benchmark"] == name.split(".")[1]
    assert content["mode"] == "smoke"
    assert any(ratio["value"] is not None for ratio in content["ratios"])
    assert content["tables"]
    assert content["machine"]
    assert content["versions"]["ray"].startswith("2.")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in IN_PROCESS],
)
def test_smoke_prints_a_ratio_and_writes_json(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(out)])
    try:
        importlib.import_module(f"benchmarks.{name}").main()
    finally:
        torch.set_num_threads(threads)
    check_output(name, capsys.readouterr().out, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] if n in LONG else []) for n in COMMANDS]
)
def test_smoke_of_a_command_prints_a_ratio_and_writes_json(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    extra = ("--device", "cpu") if name == "speed.gpu_sharing" else ()
    done = run(name, "--smoke", "--out", out, *extra)
    assert done.returncode == 0, done.stderr[-3000:]
    check_output(name, done.stdout, out)
    assert json.loads(out.read_text())["command"].startswith(f"python -m benchmarks.{name} --smoke")


@pytest.mark.long
def test_smoke_of_the_studies(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run("models.studies", "--smoke", "--only", "tools", "--data", shared_data, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    check_output("models.studies", done.stdout, out)


@pytest.mark.parametrize("name", [*IN_PROCESS, *COMMANDS, "models.studies"])
def test_help_names_the_module(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{name}").main()
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


def test_the_readme_lists_every_benchmark() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `python -m benchmarks\.([\w.]+)`", text, re.MULTILINE)
    assert sorted(listed) == sorted((*IN_PROCESS, *COMMANDS, "models.studies"))


@pytest.mark.slow
def test_without_a_gpu_gpu_sharing_reports_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("speed.gpu_sharing")
    assert (done.returncode, done.stdout) == (0, "no CUDA device: nothing to measure\n")
