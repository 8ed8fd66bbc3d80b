"""Compare a whole search with one written as Ray Tune's tutorial shows: at least 10 × faster.

    python -m benchmarks.speed.vs_ray_tutorial [--quick] [--tutorial-configs N]

The same 24 configurations of SqueezeNet 1.0 (drawn once, by seed, from `spaces/caltech.py`), at
most 8 epochs, ASHA, the same split and images (Caltech-101, six classes, the central 224 px, as
torchvision crops them), both sides in one run, one after the other, each a separate process timed
from its command. Ours is `python -m search.run`, including decoding, linear probe and feature
cache; its cross-validation and evaluation, which the tutorial lacks, are listed separately. The
other side is `benchmarks/speed/ray_tutorial.py`, in float32 as the tutorial has it; ours computes
in bfloat16 where the processor can. `benchmarks.speed.epoch` has both precisions.

The tutorial takes over an hour on 2 cores. With `--tutorial-configs N` it runs N of the
configurations, spread over the freeze depths; the time of the others is extrapolated (the epochs
they ran on our side, times the seconds of an epoch at their depth), and the table says so.

The module is long because both sides, their commands and the comparison are one experiment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np
import optuna
import torch

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress, stop
from benchmarks.harness.workbench import find_weights_folder, generate_images, need_data
from benchmarks.speed.ray_tutorial import Job
from search.runs.tables import read_rows
from search.tuning.asha import REDUCTION_FACTOR, rung_epochs
from spaces.base import load_space
from trainables.images import read_image
from trainables.models.ensemble import Ensemble
from trainables.models.model_card import ModelCard
from trainables.pretrained.weights import load_weights

BACKBONE = "squeezenet1_0"
SEED = 0
_N_CPUS = len(os.sched_getaffinity(0))
_CALTECH_SPACE = ROOT / "spaces" / "caltech.py"

Config = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        n_configs: Configurations of our side.
        n_tutorial: How many of them the tutorial runs.
        epochs: Epochs of a full training.
        folds: Folds of our cross-validation.
        image_size: Side in pixels.
        limit: Number of images; None for all.
        data: The folder that `search.run` is given.
        weights: Folder of `<backbone>.pth`; None trains from scratch.
        source: The space's source, as Python.
        max_concurrent: Trials in parallel, on both sides.
    """

    n_configs: int
    n_tutorial: int
    epochs: int
    folds: int
    image_size: int
    limit: int | None
    data: Path
    weights: Path | None
    source: str
    max_concurrent: int


@dataclass(frozen=True)
class Side:
    """The results of one side.

    Attributes:
        search_seconds: From the command to the last trial.
        whole_seconds: From the command to its end.
        configs: The trials' configurations.
        epoch_seconds: By trial, the seconds of each epoch, including validation.
        val_accuracy: Best epoch of the best trial: on our side among complete trials, in the
            tutorial among all trials, pruned or not.
        test_accuracy: Accuracy of that epoch's weights on the test set.
    """

    search_seconds: float
    whole_seconds: float
    configs: Sequence[Config]
    epoch_seconds: Sequence[Sequence[float]]
    val_accuracy: float
    test_accuracy: float

    @property
    def n_epochs(self) -> int:
        """Return the number of epochs of all trials."""
        return sum(map(len, self.epoch_seconds))

    def seconds_at(self, depth: int) -> list[float]:
        """Return the seconds of every epoch at a freeze depth."""
        pairs = zip(self.configs, self.epoch_seconds, strict=True)
        return [s for config, each in pairs if config["freeze_depth"] == depth for s in each]


def main() -> None:
    """Run the benchmark."""
    parser = command_line(__doc__, data=True)
    parser.add_argument(
        "--tutorial-configs",
        type=int,
        metavar="N",
        help="run N of the configurations in the tutorial, and extrapolate the rest",
    )
    arguments = parser.parse_args()
    report = Report("vs_ray_tutorial", "Whole search: the tutorial over ours.")
    with tempfile.TemporaryDirectory(prefix="vs-ray-tutorial-") as scratch:
        work = plan_work(arguments, Path(scratch))
        configs = draw_configs(work)
        log_progress(f"ours: {work.n_configs} configurations, at most {work.epochs} epochs")
        ours, details = run_ours(work, configs, Path(scratch))
        chosen = spread_over_depths(configs, work.n_tutorial)
        log_progress(
            f"the tutorial: {len(chosen)} configurations; ours took {ours.whole_seconds:.0f}"
        )
        theirs = run_tutorial(work, chosen, Path(scratch))
    fill_report(report, work, ours, theirs, details)
    report.publish(arguments)


def plan_work(arguments: argparse.Namespace, scratch: Path) -> Work:
    """Choose how much is measured."""
    work = _smoke_work(scratch) if arguments.mode == "smoke" else _real_work(arguments)
    n_tutorial = arguments.tutorial_configs
    if n_tutorial is None:
        return work
    if not 1 <= n_tutorial <= work.n_configs:
        stop(f"1 <= --tutorial-configs <= {work.n_configs} must hold, but got {n_tutorial}")
    return replace(work, n_tutorial=n_tutorial)


def _smoke_work(scratch: Path) -> Work:
    generate_images(scratch / "images", 24, n_classes=2)
    return Work(2, 2, 2, 2, 64, None, scratch / "images", None, "folder()", _N_CPUS)


def _real_work(arguments: argparse.Namespace) -> Work:
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    if weights is None or not (weights / f"{BACKBONE}.pth").is_file():
        stop(f"there is no {BACKBONE}.pth in {weights or data / 'weights'}; see --weights")
    source = f"load_space({str(_CALTECH_SPACE)!r}).source"
    work = Work(24, 24, 8, 5, 224, None, data / "caltech101", weights, source, _N_CPUS)
    if arguments.mode == "quick":
        work = replace(work, n_configs=6, n_tutorial=6, epochs=3, limit=120)
    return work


def draw_configs(work: Work) -> list[Config]:
    """Draw configurations, by seed; a small number is spread over the freeze depths."""
    space = load_space(_CALTECH_SPACE).with_backbones((BACKBONE,))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    drawn = [
        {**study.ask(dict(space.distributions)).params, **space.constants}
        for _ in range(max(24, work.n_configs))
    ]
    return spread_over_depths(drawn, work.n_configs)


def spread_over_depths(configs: Sequence[Config], n: int) -> list[Config]:
    """Choose n configurations evenly over the freeze depths, in their original order."""
    turns: dict[int, int] = {}
    order = []
    for index, config in enumerate(configs):
        depth = config["freeze_depth"]
        turns[depth] = turns.get(depth, 0) + 1
        order.append((turns[depth], depth, index))
    return [configs[index] for index in sorted(index for _, _, index in sorted(order)[:n])]


def run_ours(work: Work, configs: Sequence[Config], scratch: Path) -> tuple[Side, dict[str, Any]]:
    """Run `python -m search.run` on the configurations; return its results and details."""
    space_file = scratch / "space.py"
    space_file.write_text(write_space(work, configs), encoding="utf-8")
    command = [sys.executable, "-m", "search.run", "--space", space_file, "--data", work.data]
    command += ["--out", scratch, "--name", "ours", "--seed", SEED]
    command += ["--max-concurrent", work.max_concurrent, "--folds", work.folds]
    command += ["--weights", work.weights] if work.weights else []
    command += ["--limit", work.limit] if work.limit else []
    run = scratch / "ours"
    seconds, first_model_seconds = run_command(command, scratch / "ours.log", run / "model.pt")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    stages: dict[str, float] = summary["stages"]
    after = sum(stages.get(name, 0.0) for name in ("cross_validation", "evaluation", "report"))
    trials = read_trials(run)
    best = max(trials, key=lambda t: (t["state"] == "complete", t["best"], -t["best_loss"]))
    side = Side(
        search_seconds=seconds - after,
        whole_seconds=seconds,
        configs=[trial["config"] for trial in trials],
        epoch_seconds=[trial["seconds"] for trial in trials],
        val_accuracy=best["best"],
        test_accuracy=evaluate_checkpoint(work, run, best),
    )
    details = {
        "stages_seconds": stages,
        "first_model_seconds": first_model_seconds,
        "kfold_accuracy": summary["kfold"]["accuracy_mean"],
        "ensemble_test_accuracy": summary["test"]["accuracy"],
        "test_n": summary["test"]["n"],
    }
    return side, details


def write_space(work: Work, configs: Sequence[Config]) -> str:
    """Return a space file that tries exactly these configurations."""
    return f"""from dataclasses import replace

from spaces.base import load_space
from spaces.sources import folder

SPACE = replace(
    load_space({str(_CALTECH_SPACE)!r}).with_backbones(({BACKBONE!r},)),
    source={work.source},
    image_size={work.image_size},
    resize_mode="crop",  # as the tutorial's Resize and CenterCrop
    weights={"pretrained" if work.weights else "none"!r},
    epochs={work.epochs},
    trials={len(configs)},
    first_trials={tuple(configs)!r},
)
"""


def run_command(
    command: Sequence[object], log: Path, awaited: Path | None = None
) -> tuple[float, float | None]:
    """Run a command to its end.

    Args:
        command: The command's words.
        log: File for what it prints.
        awaited: A file whose first appearance is timed.

    Returns:
        Seconds to the end, and to the awaited file (None: it never appeared).
    """
    # Each side sets its own variables for Tune; none is inherited.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNE_")}
    environment["PYTHONPATH"] = str(ROOT)
    started, seen = perf_counter(), None
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=file, env=environment
        )
        while process.poll() is None:
            if awaited is not None and seen is None and awaited.exists():
                seen = perf_counter() - started
            sleep(0.05)
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        stop(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{tail}", code=1)
    return perf_counter() - started, seen


def read_trials(run: Path) -> list[dict[str, Any]]:
    """Read the results of our trials from the run folder."""
    trials = []
    for row in read_rows(run / "trials.csv"):
        epochs = read_rows(run / "trials" / row["number"] / "progress.csv")
        best_epoch = epochs[int(row["best_epoch"]) - 1]
        trials.append(
            {
                "number": int(row["number"]),
                "state": row["state"],
                "best": float(row["best_val_accuracy"]),
                "best_loss": float(best_epoch["val_loss"]),
                "config": {"freeze_depth": int(row["freeze_depth"])},
                "seconds": [float(epoch["seconds"]) for epoch in epochs],
            }
        )
    return trials


def read_split(run: Path) -> list[tuple[str, str, str]]:
    """Read our split: every image's name, class and split."""
    rows = read_rows(run / "split.csv")
    return [(row["image"], row["label"], row["split"]) for row in rows]


def find_image(data: Path, name: str) -> Path:
    """Find an image by its name in our split, below the data folder or the set's own."""
    places = [folder / name for folder in (data, data / "101_ObjectCategories")]
    found = [path for path in places if path.is_file()]
    if not found:
        stop(f"{data} has no image {name}, which the split names", code=1)
    return found[0]


def read_samples(work: Work, run: Path) -> tuple[tuple[str, ...], dict[str, list[tuple[str, int]]]]:
    """Return the classes, and each split's paths with labels."""
    rows = read_split(run)
    classes = tuple(sorted({label for _, label, _ in rows}))
    samples: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for name, label, part in rows:
        samples[part].append((str(find_image(work.data, name)), classes.index(label)))
    return classes, samples


def evaluate_checkpoint(work: Work, run: Path, trial: dict[str, Any]) -> float:
    """Compute the test accuracy of a trial's best checkpoint; NaN where it was not kept."""
    kept = run / "trials" / str(trial["number"]) / "best.pt"
    if not kept.is_file():
        return float("nan")
    summary_classes = json.loads((run / "summary.json").read_text())["data"]["classes"]
    classes, samples = read_samples(work, run)
    card = ModelCard(
        backbone=BACKBONE,
        classes=tuple(summary_classes),
        image_size=work.image_size,
        cache_size=round(work.image_size / 0.875),
        freeze_depth=trial["config"]["freeze_depth"],
        hidden_units=0,
        n_members=1,
        resize_mode="crop",
    )
    model = Ensemble(card, _prefix(work, run), [torch.load(kept, weights_only=True)["content"]])
    table = np.stack([card.to_square(read_image(p)) for p, _ in samples["test"]])
    predicted = model.logits(torch.from_numpy(table))[0].argmax(1)
    right = [
        summary_classes[guess] == classes[label]
        for guess, (_, label) in zip(predicted.tolist(), samples["test"], strict=True)
    ]
    return sum(right) / len(right)


def _prefix(work: Work, run: Path) -> dict[str, torch.Tensor]:
    """Return the frozen stages of our models: pretrained, or random with our seed."""
    from trainables.models.backbones import create_backbone

    state = load_weights(work.weights / f"{BACKBONE}.pth") if work.weights else None
    return create_backbone(BACKBONE, state, seed=SEED).stages.state_dict()


def run_tutorial(work: Work, configs: Sequence[Config], scratch: Path) -> Side:
    """Run `benchmarks/speed/ray_tutorial.py` on the configurations."""
    classes, samples = read_samples(work, scratch / "ours")
    job = Job(
        configs=tuple(configs),
        epochs=work.epochs,
        grace_epochs=rung_epochs(work.epochs)[0],
        reduction_factor=REDUCTION_FACTOR,
        image_size=work.image_size,
        n_classes=len(classes),
        weights=str(work.weights / f"{BACKBONE}.pth") if work.weights else None,
        samples=samples,
        max_concurrent=work.max_concurrent,
        out=str(scratch / "tutorial-out.json"),
    )
    job.write(scratch / "job.json")
    command = [sys.executable, "-m", "benchmarks.speed.ray_tutorial", scratch / "job.json"]
    seconds, _ = run_command(command, scratch / "tutorial.log")
    found = json.loads(Path(job.out).read_text(encoding="utf-8"))
    return Side(
        search_seconds=found["search_seconds"],
        whole_seconds=seconds,
        configs=[trial["params"] for trial in found["trials"]],
        epoch_seconds=[trial["seconds"] for trial in found["trials"]],
        val_accuracy=found["best_val_accuracy"],
        test_accuracy=found["test_accuracy"],
    )


def extrapolate_seconds(work: Work, ours: Side, theirs: Side) -> float:
    """Extrapolate the seconds of the configurations that the tutorial did not run.

    The epochs that they ran on our side, times the tutorial's median seconds of an epoch at their
    depth (interpolated between measured depths), over the trials in parallel.
    """
    measured = {d: median(s) for d in range(6) if (s := theirs.seconds_at(d))}
    left = {d: len(ours.seconds_at(d)) for d in range(6)}
    for depth in range(6):
        done = sum(c["freeze_depth"] == depth for c in theirs.configs)
        n_ours = sum(c["freeze_depth"] == depth for c in ours.configs)
        left[depth] = round(left[depth] * (n_ours - done) / n_ours) if n_ours else 0
    costs = np.interp(range(6), list(measured), list(measured.values()))
    return float(sum(left[d] * costs[d] for d in range(6)) / work.max_concurrent)


def fill_report(
    report: Report, work: Work, ours: Side, theirs: Side, details: dict[str, Any]
) -> None:
    """Add tables, ratios and notes to the report."""
    is_whole = len(theirs.configs) == len(ours.configs)
    extra_seconds = 0.0 if is_whole else extrapolate_seconds(work, ours, theirs)
    tutorial_seconds = theirs.search_seconds + extra_seconds
    basis = f"{len(theirs.configs)} of {len(ours.configs)} configurations measured"
    report.tables["Whole search"] = [
        _side_row("ours, to the last trial", "measured", ours, ours.search_seconds),
        _side_row("ours, the whole command", "measured", ours, ours.whole_seconds),
        _side_row(
            "tutorial",
            "measured" if is_whole else f"extrapolated: {basis}",
            theirs,
            tutorial_seconds,
        ),
    ]
    report.tables["An epoch with validation, by freeze depth (median seconds)"] = [
        _depth_row(depth, ours, theirs) for depth in range(6)
    ]
    report.tables["Our stages"] = [
        {"stage": name, "seconds": seconds} for name, seconds in details["stages_seconds"].items()
    ]
    report.ratios += [
        Ratio("whole search, tutorial over ours", tutorial_seconds / ours.search_seconds, 10.0),
        Ratio(
            "tutorial over our whole command",
            tutorial_seconds / ours.whole_seconds,
        ),
        _depth_ratio(5, ours, theirs, 100.0),
        _depth_ratio(0, ours, theirs, 2.5),
        Ratio(
            "best validation accuracy, ours minus tutorial",
            ours.val_accuracy - theirs.val_accuracy,
            0.0,
        ),
        Ratio(
            "test accuracy of the best trial, ours minus tutorial",
            ours.test_accuracy - theirs.test_accuracy,
        ),
    ]
    report.notes += [
        f"{work.max_concurrent} trials in parallel, one CPU each; ASHA by {REDUCTION_FACTOR}, ours"
        f" after epochs {rung_epochs(work.epochs)}, the tutorial's from the first epoch on",
        f"test: {details['test_n']} images; our ensemble of {work.folds} members classifies"
        f" {details['ensemble_test_accuracy']:.4f} of them correctly",
        f"ours saves its first model after {details['first_model_seconds'] or float('nan'):.1f}"
        " s of its command",
    ]
    report.extra["ours"], report.extra["tutorial"] = vars(ours) | details, vars(theirs)


def _side_row(side: str, basis: str, figures: Side, seconds: float) -> dict[str, Any]:
    return {
        "side": side,
        "basis": basis,
        "configurations": len(figures.configs),
        "epochs": figures.n_epochs,
        "seconds": seconds,
        "best val accuracy": figures.val_accuracy,
        "test accuracy": figures.test_accuracy,
    }


def _depth_row(depth: int, ours: Side, theirs: Side) -> dict[str, Any]:
    mine, other = ours.seconds_at(depth), theirs.seconds_at(depth)
    return {
        "freeze depth": depth,
        "ours": median(mine) if mine else float("nan"),
        "ours epochs": len(mine),
        "tutorial": median(other) if other else float("nan"),
        "tutorial epochs": len(other),
        "ratio": median(other) / median(mine) if mine and other else float("nan"),
    }


def _depth_ratio(depth: int, ours: Side, theirs: Side, target: float) -> Ratio:
    ratio = _depth_row(depth, ours, theirs)["ratio"]
    return Ratio(f"an epoch at depth {depth}, tutorial over ours", ratio, target)


if __name__ == "__main__":
    main()
