"""The five studies: what a whole run gets on the images at hand, over seeds.

    python -m benchmarks.models.studies [--only caltech,tools] [--time-budget 5m] [--runs DIR]

Runs the command of each study, from images to model, once a seed, one after the other, and gives
mean and standard deviation of what each run says of itself. Beside it stands a plain linear probe:
one logistic regression on MobileNetV2's pooled features of the same training and validation
images, framed as torchvision's recipes do, judged on the same held-out ones. The ladder of cats
and dogs is climbed in a run of its own (--only ladder). With --runs the run folders are kept, and
those that are whole are not run again; --quick is one seed. docs/studies.md puts the figures beside
those of the studies.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, say, stop
from benchmarks.harness.workbench import (
    ImageFiles,
    find_weights_folder,
    need_data,
    new_backbone,
    pooled_features,
    read_state,
)
from search.data.manifest import find_images, scan_external
from spaces.base import load_space
from trainables.models.linear_probe import fit_head

_PHOTOS = "--weights {data}/weights --backbones mobilenet_v2"
STUDIES: Mapping[str, str] = {
    "caltech": "--data {data}/caltech101 --external {data}/external/caltech6 "
    + _PHOTOS
    + " --trials 8 --epochs 8",
    "tools": "--data {data}/tools " + _PHOTOS + " --trials 12 --epochs 15",
    "cats_dogs": "--data {data}/cats_dogs " + _PHOTOS + " --trials 8 --epochs 8",
    "fashion_mnist": "--data {data} --backbones tinynet --limit 4000 --trials 4 --epochs 8"
    " --folds 3",
    "products": "--data {data}/products " + _PHOTOS + " --trials 8 --epochs 8",
}
"""By space, what its command has besides the space, the seed and where the run goes."""

LADDER = "--data {data}/cats_dogs " + _PHOTOS + " --trials 1 --epochs 15 --folds 2"
"""The same for the ladder, which is as long as the space's trials are."""

FIGURES: Mapping[str, tuple[str, str]] = {
    "held-out": ("test", "accuracy"),
    "macro F1": ("test", "macro_f1"),
    "folds": ("kfold", "accuracy_mean"),
    "external": ("external", "accuracy"),
    "ECE": ("test", "ece"),
}
"""By column, where `summary.json` has it."""

TARGETS = {("caltech", "held-out"): 0.99, ("caltech", "external"): 0.97}
GAIN = 0.01
"""Asked of each photo set over the plain probe, where there is that much to gain."""

_LADDER = "ablation"
_BACKBONE = "mobilenet_v2"


def main() -> int:
    """Run the studies, print tables, and keep them as JSON."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--only", default="", metavar="A,B", help="these studies (default: all)")
    parser.add_argument("--time-budget", metavar="5m", help="of each run (default: none)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the run folders here")
    arguments = parser.parse_args()
    every = [*STUDIES, _LADDER]
    names = arguments.only.split(",") if arguments.only else every
    unknown = [name for name in names if name not in every]
    if unknown:
        stop(f"there is no study {unknown[0]!r} (there are: {', '.join(every)})")
    climbs = _LADDER in names
    names = [name for name in names if name != _LADDER]
    report = Report("studies", "Mean and standard deviation over seeds of whole runs.")
    seeds = range({"smoke": 1, "quick": 1, "full": 3}[arguments.mode])
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.runs or Path(scratch)
        runs = {
            name: [_run(arguments, name, STUDIES[name], seed, out) for seed in seeds]
            for name in names
        }
        probes = {
            name: _probe(arguments, name, [out / f"{name}-{seed}" for seed in seeds])
            for name in names
            if _PHOTOS in STUDIES[name]
        }
        if climbs:
            results = _run(arguments, "cats_dogs", LADDER, 0, out, name=_LADDER)
            report.tables["the ladder, accuracies at the last epoch"] = tabulate_ladder(results)
    rows = [summarise(name, made, probes.get(name)) for name, made in runs.items()]
    report.tables = {"by study": rows, **report.tables}
    for (name, column), target in TARGETS.items():
        if name in runs:
            section, key = FIGURES[column]
            mean = statistics.mean(run[section][key] for run in runs[name])
            report.ratios.append(Ratio(f"{name}, {column}", mean, target))
    for name, found in probes.items():
        ours = statistics.mean(run["test"]["accuracy"] for run in runs[name])
        plain = statistics.mean(one["held-out"] for one in found)
        # Nobody gains a point over a probe that leaves less to be gained.
        report.ratios.append(
            Ratio(f"{name}, held-out, over the probe", ours - plain, min(GAIN, 1 - plain))
        )
    report.extra["commands"] = {name: f"--space spaces/{name}.py {STUDIES[name]}" for name in names}
    report.extra["runs"] = {
        name: [
            {"test": run["test"]["accuracy"], "best": run["best"]["name"], "stages": run["stages"]}
            for run in made
        ]
        for name, made in runs.items()
    }
    report.extra["probes"] = probes
    report.publish(arguments)
    return 0


def _run(
    arguments: argparse.Namespace, space: str, options: str, seed: int, out: Path, name: str = ""
) -> dict[str, Any]:
    """Run one study with one seed, unless it is there already; return its summary."""
    folder = out / f"{name or space}-{seed}"
    if (folder / "report.html").is_file():
        return _summary(folder)
    words = shlex.split(options.format(data=shlex.quote(str(need_data(arguments)))))
    if arguments.mode == "smoke":
        words += ["--trials", "1", "--epochs", "1", "--folds", "2", "--limit", "60"]
    elif arguments.time_budget is not None and name != _LADDER:
        words += ["--time-budget", arguments.time_budget]
    say(f"{name or space}, seed {seed}")
    command = [sys.executable, "-m", "search.run", "--space", f"spaces/{space}.py", *words]
    command += ["--seed", str(seed), "--out", str(out), "--name", folder.name, "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        stop(f"{space}, seed {seed} failed: {done.stderr.strip()[-500:]}", code=1)
    return _summary(folder)


def _summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def _probe(
    arguments: argparse.Namespace, name: str, folders: Sequence[Path]
) -> list[dict[str, Any]]:
    """Judge a plain probe on the split of each run, held out and, where there are any, outside."""
    say(f"{name}: plain probe")
    words = shlex.split(STUDIES[name].format(data=shlex.quote(str(need_data(arguments)))))
    options = dict(zip(words[::2], words[1::2], strict=True))
    state = read_state(_BACKBONE, find_weights_folder(arguments, need_data(arguments)))
    backbone = new_backbone(_BACKBONE, state)
    space = load_space(ROOT / "spaces" / f"{name}.py")
    manifest = find_images(space.source, Path(options["--data"]), Path())
    place = {image: row for row, image in enumerate(manifest.names)}
    x = _features(manifest, backbone, space.image_size)
    outside: tuple[Tensor, np.ndarray] | None = None
    if "--external" in options:
        external = scan_external(Path(options["--external"]), manifest.classes)
        outside = _features(external, backbone, space.image_size), external.labels
    found = []
    for folder in folders:
        with (folder / "split.csv").open(newline="", encoding="utf-8") as file:
            split = [(place[row["name"]], row["split"]) for row in csv.DictReader(file)]
        train = np.array([row for row, part in split if part in ("train", "val")])
        test = np.array([row for row, part in split if part == "test"])
        labels = torch.from_numpy(manifest.labels[train])
        head = fit_head(x[train], labels, len(manifest.classes))
        predicted = _predict(head, x[test])
        wrong = test[predicted != manifest.labels[test]]
        judged: dict[str, Any] = {
            "held-out": 1 - len(wrong) / len(test),
            "mistakes": [manifest.names[row] for row in wrong],
        }
        if outside is not None:
            judged["external"] = float((_predict(head, outside[0]) == outside[1]).mean())
        found.append(judged)
    return found


def _features(manifest: Any, backbone: Any, image_size: int) -> Tensor:
    files = ImageFiles(manifest.paths, manifest.labels, manifest.classes, "")
    return pooled_features(files, backbone, image_size, "crop")


def _predict(head: Mapping[str, Tensor], x: Tensor) -> np.ndarray:
    return np.asarray((x @ head["weight"].T + head["bias"]).argmax(1).numpy())


def summarise(
    name: str, runs: list[dict[str, Any]], probes: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return a row: each figure as mean ± standard deviation over the runs."""
    row: dict[str, Any] = {"study": name, "runs": len(runs), "n": runs[0]["test"]["n"]}
    for column, (section, key) in FIGURES.items():
        values = [run[section][key] for run in runs if run.get(section, {}).get(key) is not None]
        row[column] = spread(values)
    gains = [run["comparison"]["difference"] for run in runs if "comparison" in run]
    row["over trial 0"] = spread(gains)
    for what in ("held-out", "external"):
        row[f"probe, {what}"] = spread([one[what] for one in probes or () if what in one])
    row["minutes"] = statistics.mean(sum(run["stages"].values()) for run in runs) / 60
    return row


def spread(values: list[float]) -> str:
    """Return "mean ± standard deviation", one value alone, or a dash."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def tabulate_ladder(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a rung of a run's ladder."""
    return [
        {
            "rung": rung["name"],
            "epochs": rung["epochs"],
            "training": rung["train_accuracy"],
            "validation": rung["val_accuracy"],
            "best validation": rung["best_val_accuracy"],
        }
        for rung in run["ablation"]
    ]


if __name__ == "__main__":
    sys.exit(main())
