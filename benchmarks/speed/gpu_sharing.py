"""Trials that share a GPU train at 0.9 or more of its bare-step throughput together.

    python -m benchmarks.speed.gpu_sharing [--quick] [--packed 1,2,4,8]

For a machine with CUDA; without one it says so and ends with 0. Per backbone, at depth 0: images
a second of k processes on the card that take the bare model step (forward, backward, optimiser, on
a batch that lies on the card, autocast, channels_last), and of k of our trainings, k = 1, 2, 4, 8.
The ratio is the most that any number of trainings reaches over the most that any number of bare
steps does. Then a whole search, by its command, with the seconds of each stage.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, say
from benchmarks.harness.workbench import (
    caltech_six,
    find_data,
    find_weights_folder,
    generate_images,
    new_backbone,
    pack_images,
)
from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.feature_cache import mixed_precision
from trainables.images import crop_and_normalise
from trainables.models.ensemble import Classifier, create_head
from trainables.trainer import Trainer

BATCH = 32
AUGMENT = 0.5
_START_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        backbones: Which.
        image_size: Side in pixels.
        n_images: An epoch's.
        seconds: That each throughput is measured for.
        decoded: Trainings at a time.
        trials: Of the whole search; 0 leaves it out.
    """

    backbones: tuple[str, ...]
    image_size: int
    n_images: int
    seconds: float
    decoded: tuple[int, ...]
    trials: int


PLANS = {
    "full": Plan(("resnet18", "resnet50", "mobilenet_v2"), 224, 1024, 20.0, (1, 2, 4, 8), 24),
    "quick": Plan(("resnet18", "mobilenet_v2"), 224, 512, 8.0, (1, 4), 6),
    "smoke": Plan(("tinynet",), 32, 64, 0.5, (1, 2), 0),
}


def main() -> None:
    """Measure, and report; do nothing where there is no GPU."""
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    plan = PLANS[arguments.mode]
    decoded = arguments.decoded or plan.decoded
    report = Report("gpu", "Trials that share a GPU: their throughput over the bare step's.")
    with tempfile.TemporaryDirectory() as scratch:
        images = _images(arguments, plan, Path(scratch))
        rows = [
            row
            for name in plan.backbones
            for row in measure(plan, name, images, decoded, arguments.device)
        ]
        report.tables[f"Training images a second at depth 0, batches of {BATCH}"] = rows
        report.ratios += [compare(name, rows) for name in plan.backbones]
        if plan.trials and arguments.device == "cuda":
            report.tables["A whole search"] = search(arguments, plan, Path(scratch))
    report.publish(arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__, data=True)
    parser.add_argument(
        "--packed",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        metavar="K,…",
        help="trainings at a time",
    )
    parser.add_argument("--device", default="cuda", help="cpu shows that the benchmark runs")
    return parser.parse_args()


def _images(arguments: argparse.Namespace, plan: Plan, scratch: Path) -> ImageSet:
    """Pack images, as often as an epoch needs."""
    data = find_data(arguments)
    if data is None or arguments.mode == "smoke":
        files = generate_images(scratch / "images", 64)
    else:
        files = caltech_six(data)
    once = pack_images(files, plan.image_size)
    rows = torch.arange(plan.n_images) % len(once.table)
    return ImageSet(once.table[rows], once.labels[rows], once.n_classes, once.image_size, True)


def measure(
    plan: Plan, name: str, images: ImageSet, decoded: tuple[int, ...], device: str
) -> list[dict[str, Any]]:
    """Measure k bare steps and k trainings at a time; NaN where they do not fit the card."""
    rows = []
    for k in decoded:
        bare = run_together(k, run_bare, (plan, name, images, device))
        ours = run_together(k, run_trainings, (plan, name, images, device))
        say(f"{name}: {k} at a time, bare {bare:.0f}, trainings {ours:.0f} images/s")
        rows.append(
            {
                "backbone": name,
                "at a time": k,
                "trainings images/s": ours,
                "bare step images/s": bare,
                "ratio": ours / bare,
            }
        )
    return rows


def compare(name: str, rows: list[dict[str, Any]]) -> Ratio:
    """Compare the most that trainings reach with the most that the card gives."""
    ours, bare = (
        max(
            (row[key] for row in rows if row["backbone"] == name and row[key] > 0), default=math.nan
        )
        for key in ("trainings images/s", "bare step images/s")
    )
    return Ratio(f"packed trainings over the card's bare step, {name}", ours / bare, 0.9)


def run_together(n: int, work: Any, arguments: tuple[Any, ...]) -> float:
    """Run n processes that begin to measure at the same moment; add their images/s up.

    Returns:
        Images a second; NaN where a process failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n, timeout=_START_TIMEOUT_SECONDS), context.Queue()
    processes = [
        context.Process(target=work, args=(*arguments, barrier, results)) for _ in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        return math.nan
    return float(sum(results.get() for _ in processes))


def run_bare(
    plan: Plan, name: str, images: ImageSet, device: str, barrier: Any, results: Any
) -> None:
    """Take the bare model step for some seconds; report images/s."""
    torch.set_num_threads(1)
    backbone = new_backbone(name, None, device)
    backbone.freeze(0)
    head = create_head(backbone.feature_size, images.n_classes, 0, 0.0).to(device)
    model = Classifier(backbone, head).train()
    inputs = crop_and_normalise(images.table[:BATCH].to(device), plan.image_size)
    labels = images.labels[:BATCH].to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def take_steps() -> int:
        for _ in range(10):
            with mixed_precision(inputs.device):
                logits = model(inputs)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        _wait(device)
        return 10 * BATCH

    take_steps()
    barrier.wait()
    results.put(_rate(take_steps, plan.seconds))


def run_trainings(
    plan: Plan, name: str, images: ImageSet, device: str, barrier: Any, results: Any
) -> None:
    """Run epochs of our training for some seconds; report images/s."""
    torch.set_num_threads(1)
    rows = torch.arange(len(images.table))
    on_card = ImageSet(
        images.table.to(device),
        images.labels,
        images.n_classes,
        images.image_size,
        images.flip,
    )
    trainer = Trainer(
        TrialConfig(name, lr=1e-4, freeze_depth=0, augment=AUGMENT, batch_size=BATCH),
        new_backbone(name, None, device),
        on_card,
        rows,
        rows[:0],
        epochs=1_000_000,
        seed=0,
    )

    def run_epoch() -> int:
        trainer.run_epoch()
        _wait(device)
        return len(rows)

    run_epoch()
    barrier.wait()
    results.put(_rate(run_epoch, plan.seconds))


def _rate(work: Any, seconds: float) -> float:
    """Repeat work for at least so many seconds; return the median of what it does a second."""
    rates = []
    ends_at = time.perf_counter() + seconds
    while not rates or time.perf_counter() < ends_at:
        started = time.perf_counter()
        n_images = work()
        rates.append(n_images / (time.perf_counter() - started))
    return median(rates)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def search(arguments: argparse.Namespace, plan: Plan, scratch: Path) -> list[dict[str, Any]]:
    """Run a whole search by its command: the Caltech space where there is data, else digits."""
    data = find_data(arguments)
    weights = find_weights_folder(arguments, data)
    command = [sys.executable, "-m", "search.run", "--out", str(scratch), "--name", "run"]
    command += ["--trials", str(plan.trials)]
    if data is not None and weights is not None:
        names = sorted({path.stem for path in weights.glob("*.pth")})
        command += ["--space", "spaces/caltech.py", "--data", str(data / "caltech101")]
        command += ["--weights", str(weights), "--backbones", ",".join(names)]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    summary = json.loads((scratch / "run" / "summary.json").read_text(encoding="utf-8"))
    rows = [{"stage": name, "seconds": taken} for name, taken in summary["stages"].items()]
    rows.append({"stage": "whole command", "seconds": seconds})
    return rows


if __name__ == "__main__":
    main()
