"""The five studies: what a whole run gets on the pictures at hand, over seeds.

    python benchmarks/studies.py [--only caltech,tools] [--quick]

Runs the command of each study, from pictures to model, once a seed, one after the other, and gives
mean and standard deviation of what each run says of itself. --quick is one seed. docs/studies.md
puts the figures beside those of the studies.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reporting import ROOT, Report, command_line, say, stop
from benchmarks.workbench import need_data

_PHOTOS = "--weights {data}/weights --backbones squeezenet1_0,mobilenet_v2"
STUDIES: Mapping[str, str] = {
    "caltech": "--data {data}/caltech101 --external {data}/external/caltech6 "
    + _PHOTOS
    + " --trials 12 --epochs 8",
    "tools": "--data {data}/tools " + _PHOTOS + " --trials 12 --epochs 15",
    "cats_dogs": "--data {data}/cats_dogs " + _PHOTOS + " --trials 10 --epochs 8",
    "fashion_mnist": "--data {data} --backbones tinynet,cnn --limit 4000 --trials 8 --epochs 8"
    " --folds 3",
    "products": "--data {data}/products " + _PHOTOS + " --trials 10 --epochs 10",
}
"""By space, what its command has besides the space, the seed and where the run goes."""

FIGURES: Mapping[str, tuple[str, str]] = {
    "held-out": ("test", "accuracy"),
    "macro F1": ("test", "macro_f1"),
    "folds": ("kfold", "accuracy_mean"),
    "external": ("external", "accuracy"),
    "ECE": ("test", "ece"),
}
"""By column, where `summary.json` has it."""


def main() -> int:
    """Run the studies, print a table, and keep it as JSON."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--only", default="", metavar="A,B", help="these studies (default: all)")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(STUDIES)
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        stop(f"there is no study {unknown[0]!r} (there are: {', '.join(STUDIES)})")
    report = Report("studies", "Mean and standard deviation over seeds of whole runs.")
    seeds = range({"smoke": 1, "quick": 1, "full": 3}[arguments.mode])
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            name: [_run(arguments, name, seed, Path(scratch)) for seed in seeds] for name in names
        }
    report.tables["by study"] = [summarise(name, made) for name, made in runs.items()]
    ladders = [row for name, made in runs.items() for row in _ladder(name, made)]
    if ladders:
        report.tables["the ladder, accuracies at the last epoch"] = ladders
    report.extra["commands"] = {name: f"--space spaces/{name}.py {STUDIES[name]}" for name in names}
    report.publish(arguments)
    return 0


def _run(arguments: argparse.Namespace, name: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one study with one seed; return its summary."""
    words = shlex.split(STUDIES[name].format(data=shlex.quote(str(need_data(arguments)))))
    if arguments.mode == "smoke":
        words += ["--trials", "1", "--epochs", "1", "--folds", "2", "--limit", "60"]
    say(f"{name}, seed {seed}")
    command = [sys.executable, "-m", "search.run", "--space", f"spaces/{name}.py", *words]
    command += ["--seed", str(seed), "--out", str(out), "--name", f"{name}-{seed}", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        stop(f"{name}, seed {seed} failed: {done.stderr.strip()[-500:]}", code=1)
    summary: dict[str, Any] = json.loads((out / f"{name}-{seed}" / "summary.json").read_text())
    return summary


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row: each figure as mean ± standard deviation over the runs."""
    row: dict[str, Any] = {"study": name, "runs": len(runs), "n": runs[0]["test"]["n"]}
    for column, (section, key) in FIGURES.items():
        values = [run[section][key] for run in runs if run.get(section, {}).get(key) is not None]
        row[column] = spread(values)
    gains = [run["comparison"]["difference"] for run in runs if "comparison" in run]
    row["over trial 0"] = spread(gains)
    row["minutes"] = statistics.mean(sum(run["stages"].values()) for run in runs) / 60
    return row


def spread(values: list[float]) -> str:
    """Return "mean ± standard deviation", one value alone, or a dash."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def _ladder(name: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    climbed = [run["ladder"] for run in runs if "ladder" in run]
    return [
        {
            "study": name,
            "rung": rungs[0]["name"],
            "training": spread([rung["train_accuracy"] for rung in rungs]),
            "validation": spread([rung["val_accuracy"] for rung in rungs]),
        }
        for rungs in zip(*climbed, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
