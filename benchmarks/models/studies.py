"""Run the five studies: accuracy of whole runs on real images, over seeds.

    python -m benchmarks.models.studies [--only caltech,tools] [--time-budget 5m] [--runs DIR]

Runs the command of each study, from images to model, once per seed, one after the other, and
reports mean and standard deviation of the runs' own figures. The baseline is a plain linear probe:
one logistic regression on MobileNetV2's pooled features of the same training and validation images,
centre-cropped as in torchvision, evaluated on the same test set. The ablation of cats and dogs is a
separate run (--only ablation). With --runs the run folders are kept, and finished ones are not run
again; --quick is one seed. docs/studies.md compares the figures with those of the studies.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress, stop
from benchmarks.harness.workbench import (
    ImageFiles,
    find_weights_folder,
    need_data,
    new_backbone,
    pooled_features,
    read_state,
)
from search.data.scan import find_images, scan_external
from search.runs.summary import read_summary
from search.runs.tables import read_rows
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
"""By space, the options of its command besides --space, --seed, --out and --name."""

ABLATION = "--data {data}/cats_dogs " + _PHOTOS + " --trials 1 --epochs 15 --folds 2"
"""The same for the ablation, whose trainings are as long as the space's trials."""

FIGURES: Mapping[str, str] = {
    "test": "test.accuracy",
    "macro F1": "test.macro_f1",
    "cross-validation": "kfold.accuracy_corrected",
    "external": "external.scores.accuracy",
    "ECE": "test.ece",
}
"""By column, the attribute of `RunSummary`."""

TARGETS = {("caltech", "test"): 0.99, ("caltech", "external"): 0.97}
GAIN = 0.01
"""Target for each photo set over the plain probe, if the probe leaves that much to gain."""

_ABLATION = "ablation"
_BACKBONE = "mobilenet_v2"


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--only", default="", metavar="A,B", help="these studies (default: all)")
    parser.add_argument("--time-budget", metavar="5m", help="of each run (default: none)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the run folders here")
    arguments = parser.parse_args()
    every = [*STUDIES, _ABLATION]
    names = arguments.only.split(",") if arguments.only else every
    unknown = [name for name in names if name not in every]
    if unknown:
        stop(f"there is no study {unknown[0]!r} (there are: {', '.join(every)})")
    with_ablation = _ABLATION in names
    names = [name for name in names if name != _ABLATION]
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
        if with_ablation:
            results = _run(arguments, "cats_dogs", ABLATION, 0, out, name=_ABLATION)
            report.tables["ablation, accuracies at the last epoch"] = tabulate_ablation(results)
    rows = [summarise(name, made, probes.get(name)) for name, made in runs.items()]
    report.tables = {"by study": rows, **report.tables}
    for (name, column), target in TARGETS.items():
        if name in runs:
            mean = statistics.mean(read_figure(run, FIGURES[column]) or 0.0 for run in runs[name])
            report.ratios.append(Ratio(f"{name}, {column}", mean, target))
    for name, found in probes.items():
        ours = statistics.mean(run.test.accuracy for run in runs[name])
        plain = statistics.mean(one["test"] for one in found)
        # A probe above 0.99 leaves less than a point to gain.
        report.ratios.append(
            Ratio(f"{name}, test, over the probe", ours - plain, min(GAIN, 1 - plain))
        )
    report.extra["commands"] = {name: f"--space spaces/{name}.py {STUDIES[name]}" for name in names}
    report.extra["runs"] = {
        name: [
            {"test": run.test.accuracy, "best": run.best.name, "stages": run.stages} for run in made
        ]
        for name, made in runs.items()
    }
    report.extra["probes"] = probes
    report.publish(arguments)
    return 0


def _run(
    arguments: argparse.Namespace, space: str, options: str, seed: int, out: Path, name: str = ""
) -> Any:
    """Run one study with one seed, unless the run exists already; return its summary."""
    folder = out / f"{name or space}-{seed}"
    if (folder / "report.html").is_file():
        return read_summary(folder / "summary.json")
    words = shlex.split(options.format(data=shlex.quote(str(need_data(arguments)))))
    if arguments.mode == "smoke":
        words += ["--trials", "1", "--epochs", "1", "--folds", "2", "--limit", "60"]
    elif arguments.time_budget is not None and name != _ABLATION:
        words += ["--time-budget", arguments.time_budget]
    log_progress(f"{name or space}, seed {seed}")
    command = [sys.executable, "-m", "search.run", "--space", f"spaces/{space}.py", *words]
    command += ["--seed", str(seed), "--out", str(out), "--name", folder.name, "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        stop(f"{space}, seed {seed} failed: {done.stderr.strip()[-500:]}", code=1)
    return read_summary(folder / "summary.json")


def _probe(
    arguments: argparse.Namespace, name: str, folders: Sequence[Path]
) -> list[dict[str, Any]]:
    """Evaluate a plain probe on each run's split, and on external images where there are any."""
    log_progress(f"{name}: plain probe")
    words = shlex.split(STUDIES[name].format(data=shlex.quote(str(need_data(arguments)))))
    options = dict(zip(words[::2], words[1::2], strict=True))
    state = read_state(_BACKBONE, find_weights_folder(arguments, need_data(arguments)))
    backbone = new_backbone(_BACKBONE, state)
    space = load_space(ROOT / "spaces" / f"{name}.py")
    manifest = find_images(space.source, Path(options["--data"]), Path())
    place = {image: row for row, image in enumerate(manifest.names)}
    x = _features(manifest, backbone, space.image_size)
    external: tuple[Tensor, np.ndarray] | None = None
    if "--external" in options:
        found = scan_external(Path(options["--external"]), manifest.classes)
        external = _features(found, backbone, space.image_size), found.labels
    results = []
    for folder in folders:
        split = [(place[r["image"]], r["split"]) for r in read_rows(folder / "split.csv")]
        train = np.array([row for row, part in split if part in ("train", "val")])
        test = np.array([row for row, part in split if part == "test"])
        labels = torch.from_numpy(manifest.labels[train])
        head = fit_head(x[train], labels, len(manifest.classes))
        predicted = _predict(head, x[test])
        wrong = test[predicted != manifest.labels[test]]
        result: dict[str, Any] = {
            "test": 1 - len(wrong) / len(test),
            "mistakes": [manifest.names[row] for row in wrong],
        }
        if external is not None:
            result["external"] = float((_predict(head, external[0]) == external[1]).mean())
        results.append(result)
    return results


def _features(manifest: Any, backbone: Any, image_size: int) -> Tensor:
    files = ImageFiles(manifest.paths, manifest.labels, manifest.classes, "")
    return pooled_features(files, backbone, image_size, "crop")


def _predict(head: Mapping[str, Tensor], x: Tensor) -> np.ndarray:
    return np.asarray((x @ head["weight"].T + head["bias"]).argmax(1).numpy())


def summarise(
    name: str, runs: Sequence[Any], probes: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return a table row: each figure as mean ± standard deviation over the runs."""
    row: dict[str, Any] = {"study": name, "runs": len(runs), "n": runs[0].test.n}
    for column, path in FIGURES.items():
        values = [value for run in runs if (value := read_figure(run, path)) is not None]
        row[column] = mean_and_deviation(values)
    gains = [run.comparison.difference for run in runs if run.comparison is not None]
    row["vs. baseline"] = mean_and_deviation(gains)
    for what in ("test", "external"):
        row[f"probe, {what}"] = mean_and_deviation(
            [one[what] for one in probes or () if what in one]
        )
    row["minutes"] = statistics.mean(sum(run.stages.values()) for run in runs) / 60
    return row


def read_figure(run: Any, path: str) -> float | None:
    """Return an attribute of a summary by its dotted path; None without its section."""
    for name in path.split("."):
        run = getattr(run, name, None)
    return cast("float | None", run)


def mean_and_deviation(values: list[float]) -> str:
    """Format "mean ± standard deviation", a single value, or a dash."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def tabulate_ablation(run: Any) -> list[dict[str, Any]]:
    """Return a table row for each step of a run's ablation."""
    return [
        {
            "step": step.name,
            "epochs": step.epochs,
            "training": step.train_accuracy,
            "validation": step.val_accuracy,
            "best validation": step.best_val_accuracy,
        }
        for step in run.ablation
    ]


if __name__ == "__main__":
    sys.exit(main())
