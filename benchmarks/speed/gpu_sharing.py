"""Compare the throughput of trials that share a GPU with the bare model step on it (≥ 0.9).

    python -m benchmarks.speed.gpu_sharing [--quick] [--parallel 1,2,4,8]

Needs CUDA; without it the benchmark reports so and exits with 0. Per backbone, at depth 0: images
per second of k processes on the GPU that run the bare model step (forward, backward, optimizer, on
a batch in GPU memory, autocast, channels_last), and of k of our trainings, k = 1, 2, 4, 8. The
ratio is the best throughput of any number of trainings over the best of any number of bare steps.
Then a whole search, by its command, with the seconds of each stage.
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

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress
from benchmarks.harness.workbench import (
    caltech_six,
    decode_images,
    find_data,
    find_weights_folder,
    generate_images,
    new_backbone,
)
from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.compute import mixed_precision
from trainables.images import crop_pixels
from trainables.models.classifier import Classifier, create_head
from trainables.trainer import Trainer

BATCH = 32
AUGMENT = 0.5
_START_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        backbones: Backbones to measure.
        image_size: Side in pixels.
        n_images: Images per epoch.
        seconds: How long each throughput is measured.
        parallel: Numbers of trainings in parallel.
        trials: Trials of the whole search; 0 skips it.
    """

    backbones: tuple[str, ...]
    image_size: int
    n_images: int
    seconds: float
    parallel: tuple[int, ...]
    trials: int


PLANS = {
    "full": Plan(("resnet18", "resnet50", "mobilenet_v2"), 224, 1024, 20.0, (1, 2, 4, 8), 24),
    "quick": Plan(("resnet18", "mobilenet_v2"), 224, 512, 8.0, (1, 4), 6),
    "smoke": Plan(("tinynet",), 32, 64, 0.5, (1, 2), 0),
}


def main() -> None:
    """Run the benchmark; do nothing without a GPU."""
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    plan = PLANS[arguments.mode]
    parallel = arguments.parallel or plan.parallel
    report = Report("gpu_sharing", "Throughput of trials that share a GPU over the bare step's.")
    with tempfile.TemporaryDirectory() as scratch:
        images = _images(arguments, plan, Path(scratch))
        rows = [
            row
            for name in plan.backbones
            for row in measure(plan, name, images, parallel, arguments.device)
        ]
        report.tables[f"Training images per second at depth 0, batches of {BATCH}"] = rows
        report.ratios += [compare(name, rows) for name in plan.backbones]
        if plan.trials and arguments.device == "cuda":
            report.tables["A whole search"] = search(arguments, plan, Path(scratch))
    report.publish(arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__, data=True)
    parser.add_argument(
        "--parallel",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        metavar="K,…",
        help="numbers of trainings in parallel",
    )
    parser.add_argument("--device", default="cuda", help="cpu shows that the benchmark runs")
    return parser.parse_args()


def _images(arguments: argparse.Namespace, plan: Plan, scratch: Path) -> ImageSet:
    """Decode images and repeat them until an epoch is full."""
    data = find_data(arguments)
    if data is None or arguments.mode == "smoke":
        files = generate_images(scratch / "images", 64)
    else:
        files = caltech_six(data)
    once = decode_images(files, plan.image_size)
    rows = torch.arange(plan.n_images) % len(once.table)
    return ImageSet(once.table[rows], once.labels[rows], once.n_classes, once.image_size, True)


def measure(
    plan: Plan, name: str, images: ImageSet, parallel: tuple[int, ...], device: str
) -> list[dict[str, Any]]:
    """Measure k bare steps and k trainings in parallel; NaN where they do not fit the GPU."""
    rows = []
    for k in parallel:
        bare = run_together(k, run_bare, (plan, name, images, device))
        ours = run_together(k, run_trainings, (plan, name, images, device))
        log_progress(f"{name}: {k} in parallel, bare {bare:.0f}, trainings {ours:.0f} images/s")
        rows.append(
            {
                "backbone": name,
                "in parallel": k,
                "trainings images/s": ours,
                "bare step images/s": bare,
                "ratio": ours / bare,
            }
        )
    return rows


def compare(name: str, rows: list[dict[str, Any]]) -> Ratio:
    """Compare the best throughput of trainings with the best of bare steps."""
    ours, bare = (
        max(
            (row[key] for row in rows if row["backbone"] == name and row[key] > 0), default=math.nan
        )
        for key in ("trainings images/s", "bare step images/s")
    )
    return Ratio(f"trainings in parallel over the bare step, {name}", ours / bare, 0.9)


def run_together(n: int, work: Any, arguments: tuple[Any, ...]) -> float:
    """Run n processes that start to measure at the same moment; sum their throughput.

    Returns:
        Images per second; NaN where a process failed.
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
    """Run the bare model step for some seconds; report images/s."""
    torch.set_num_threads(1)
    backbone = new_backbone(name, None, device)
    backbone.freeze(0)
    head = create_head(backbone.feature_size, images.n_classes, 0, 0.0).to(device)
    model = Classifier(backbone, head).train()
    inputs = crop_pixels(images.table[:BATCH].to(device), plan.image_size)
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
    """Repeat work for at least so many seconds; return its median images per second."""
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
    """Run a whole search by its command: the Caltech space with data, else the digits."""
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
