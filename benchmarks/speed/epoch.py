"""Compare the throughput of our training epoch with the bare model step in memory (≥ 0.90).

    python -m benchmarks.speed.epoch [--quick]

For three backbones, freeze depths and augmentation strengths: training images per second of
`Trainer.run_epoch` over those of the bare model step (forward, backward, optimizer) on one batch
in memory, with the same precision, memory format and threads. From depth 1 up both start at the
output of the frozen stages, ours from the feature cache. The two alternate, and the median over
the turns is quoted; beside it the same by the process's CPU time, which other work on the machine
disturbs less. Then, on the same images, an epoch as in Ray Tune's tutorial
(`benchmarks/speed/ray_tutorial.py`: files, DataLoader, PIL, a full forward pass) over ours, at
depth 0 and with the head alone: in float32, as the tutorial has it, and under an autocast to
bfloat16, as ours computes where the processor can.

The module is long because the bare step, our epoch and the tutorial's are measured side by side.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from benchmarks.harness.workbench import (
    ImageFiles,
    build_cache,
    caltech_six,
    choose_stratified,
    decode_images,
    find_data,
    find_weights_folder,
    generate_images,
    new_backbone,
    read_state,
)
from benchmarks.speed import ray_tutorial
from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.compute import configure_cpu, mixed_precision
from trainables.feature_cache import FeatureCache
from trainables.images import crop_pixels
from trainables.models.classifier import Classifier, Weights, create_head
from trainables.trainer import Trainer

BACKBONES = ("squeezenet1_0", "mobilenet_v2", "resnet18")
DEPTHS = (0, 3, 4, 5)
STRENGTHS = (0.0, 0.5)
BATCH = 32
PRECISIONS = ("float32", "bfloat16")
"""What the tutorial computes in; ours takes bfloat16 where the processor can."""
N_VIEWS = 3


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        n_images: Images per epoch, whole batches.
        image_size: Side in pixels.
        backbones: Backbones to measure.
        depths: Freeze depths to measure.
        turns: How often ours and the bare step alternate.
        epochs_per_turn: Epochs of ours per turn at depth 5, where an epoch is short.
        tutorial_backbones: Backbones that are compared with the tutorial.
    """

    n_images: int
    image_size: int
    backbones: tuple[str, ...]
    depths: tuple[int, ...]
    turns: int
    epochs_per_turn: int
    tutorial_backbones: tuple[str, ...]


PLANS = {
    "full": Plan(512, 224, BACKBONES, DEPTHS, 5, 20, BACKBONES),
    "quick": Plan(96, 224, BACKBONES, DEPTHS, 3, 10, BACKBONES[:1]),
    "smoke": Plan(32, 64, ("squeezenet1_0",), (0, 5), 1, 1, ("squeezenet1_0",)),
}


def main() -> None:
    """Run the benchmark."""
    parser = command_line(__doc__, data=True)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; a trial has one CPU")
    arguments = parser.parse_args()
    configure_cpu(arguments.threads)
    plan = PLANS[arguments.mode]
    report = Report("epoch", "Training images per second: our epoch over the bare model step.")
    data = find_data(arguments)
    weights = find_weights_folder(arguments, data)
    with tempfile.TemporaryDirectory() as scratch:
        if data is None or arguments.mode == "smoke":
            files = generate_images(Path(scratch), plan.n_images)
        else:
            every = caltech_six(data)
            files = every.take(choose_stratified(every.labels, plan.n_images, seed=0))
        # As the tutorial sees them.
        images = decode_images(files, plan.image_size, "crop")
        states = {name: read_state(name, weights) for name in plan.backbones}
        steps = measure_steps(plan, images, states)
        epochs = measure_epochs(plan, images, files, states, weights)
    report.tables["Training images per second"] = steps
    report.tables["A training epoch, tutorial over ours, augment 0.5 (seconds)"] = epochs
    report.ratios += compare(steps, epochs)
    random = [name for name, state in states.items() if state is None]
    report.notes += [
        f"{plan.n_images} {files.origin}, {plan.image_size} px, batches of {BATCH},"
        f" {arguments.threads} thread(s), median of {plan.turns} turns",
        *([f"random weights, which take the same time: {', '.join(random)}"] if random else []),
    ]
    report.publish(arguments)


def measure_steps(
    plan: Plan, images: ImageSet, states: dict[str, Weights | None]
) -> list[dict[str, Any]]:
    """Compare our epoch with the bare step, by backbone, depth and augmentation strength."""
    rows = torch.arange(len(images.table))
    found = []
    for name in plan.backbones:
        for depth in plan.depths:
            cache = None
            if depth > 0:
                backbone = new_backbone(name, states[name])
                cache = build_cache(backbone, images, rows, depth, N_VIEWS)
            for augment in STRENGTHS:
                config = TrialConfig(
                    name, lr=1e-4, freeze_depth=depth, augment=augment, batch_size=BATCH
                )
                row = _measure_step(plan, config, images, cache, states[name])
                log_progress(f"{name} depth {depth} augment {augment}: {row['ratio']:.3f}")
                found.append(row)
    return found


def _measure_step(
    plan: Plan,
    config: TrialConfig,
    images: ImageSet,
    cache: FeatureCache | None,
    state: Weights | None,
) -> dict[str, Any]:
    """Alternate our epoch and the bare step."""
    trainer = create_trainer(config, images, cache, state)
    bare = BareStep(config, images, cache, state)
    n_epochs = plan.epochs_per_turn if config.freeze_depth == 5 else 1
    n_steps = trainer.steps_per_epoch
    trainer.run_epoch()
    bare.run(min(3, n_steps))
    ours, theirs, by_cpu = [], [], []
    for _ in range(plan.turns):
        cpu_started = process_time()
        seconds = sum(_train_seconds(trainer, len(images.table)) for _ in range(n_epochs))
        cpu_between = process_time()
        ours.append(n_epochs * len(images.table) / seconds)
        theirs.append(n_epochs * n_steps * BATCH / bare.run(n_epochs * n_steps))
        by_cpu.append((process_time() - cpu_between) / (cpu_between - cpu_started))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "backbone": config.backbone,
        "depth": config.freeze_depth,
        "augment": config.augment,
        "inputs": "images" if cache is None else "cache",
        "ours images/s": median(ours),
        "bare images/s": median(theirs),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "by CPU time": median(by_cpu),
    }


def create_trainer(
    config: TrialConfig, images: ImageSet, cache: FeatureCache | None, state: Weights | None
) -> Trainer:
    """Create a trainer without validation."""
    rows = torch.arange(len(images.table))
    return Trainer(
        config,
        new_backbone(config.backbone, state),
        images,
        rows,
        rows[:0],
        epochs=1_000_000,
        seed=0,
        cache=cache,
    )


class BareStep:
    """The model step alone: the same batch in memory, again and again."""

    def __init__(
        self,
        config: TrialConfig,
        images: ImageSet,
        cache: FeatureCache | None,
        state: Weights | None,
    ) -> None:
        """Prepare the batch: pixels, or cached features of the frozen stages."""
        backbone = new_backbone(config.backbone, state)
        backbone.freeze(config.freeze_depth)
        self._depth = config.freeze_depth
        head = create_head(backbone.feature_size, images.n_classes, 0, config.dropout)
        self._model = Classifier(backbone, head)
        self._model.train()
        rows = torch.arange(BATCH)
        self._labels = images.labels[rows]
        self._batches = (
            crop_pixels(images.table[rows], images.image_size)
            if cache is None
            else cache.clean(rows)
        )
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=config.lr, fused=True)

    def run(self, n_steps: int) -> float:
        """Run steps; return their seconds."""
        started = perf_counter()
        for _ in range(n_steps):
            with mixed_precision(self._batches.device):
                logits = self._model(self._batches, self._depth)
            loss = F.cross_entropy(logits, self._labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
        return perf_counter() - started


def measure_epochs(
    plan: Plan,
    images: ImageSet,
    files: ImageFiles,
    states: dict[str, Weights | None],
    weights: Path | None,
) -> list[dict[str, Any]]:
    """Compare a training epoch with the tutorial's, of all layers and of the head alone."""
    rows = torch.arange(len(images.table))
    found = []
    for name in plan.tutorial_backbones:
        for depth in (0, 5):
            config = TrialConfig(name, lr=1e-4, freeze_depth=depth, augment=0.5, batch_size=BATCH)
            cache = None
            if depth == 5:
                backbone = new_backbone(name, states[name])
                cache = build_cache(backbone, images, rows, 5, N_VIEWS)
            trainer = create_trainer(config, images, cache, states[name])
            trainer.run_epoch()
            n_epochs = plan.turns * (plan.epochs_per_turn if depth == 5 else 1)
            ours = median(_train_seconds(trainer, len(rows)) for _ in range(n_epochs))
            path = None if states[name] is None else weights and weights / f"{name}.pth"
            for precision in PRECISIONS:
                theirs = _tutorial_seconds(config, files, plan.image_size, path, precision)
                log_progress(
                    f"{name} depth {depth}: tutorial in {precision} {theirs:.1f} s, ours {ours:.3f}"
                )
                found.append(
                    {
                        "backbone": name,
                        "depth": depth,
                        "tutorial's precision": precision,
                        "tutorial": theirs,
                        "ours": ours,
                        "ratio": theirs / ours,
                    }
                )
    return found


def _tutorial_seconds(
    config: TrialConfig,
    files: ImageFiles,
    image_size: int,
    weights: Path | None,
    precision: str,
) -> float:
    """Time one epoch of the tutorial; the first batches warm up and are not counted."""
    params, bfloat16 = vars(config), precision == "bfloat16"
    n_classes = len(files.classes)
    model = ray_tutorial.create_model(params, None if weights is None else str(weights), n_classes)
    optimizer, _ = ray_tutorial.create_optimizer(model, params, n_steps=1)
    transform = ray_tutorial.training_transform(image_size, config.augment)
    samples = [(str(p), int(y)) for p, y in zip(files.paths, files.labels, strict=True)]
    warming = ray_tutorial.create_loader(samples[:BATCH], transform, BATCH, shuffle=True)
    ray_tutorial.train_epoch(model, warming, optimizer, bfloat16=bfloat16)
    loader = ray_tutorial.create_loader(samples, transform, BATCH, shuffle=True)
    started = perf_counter()
    ray_tutorial.train_epoch(model, loader, optimizer, bfloat16=bfloat16)
    return perf_counter() - started


def _train_seconds(trainer: Trainer, n_images: int) -> float:
    """Run an epoch; return the seconds of its training pass, without the empty validation."""
    return n_images / trainer.run_epoch().images_per_second


def compare(steps: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> list[Ratio]:
    """Summarize the tables: the lowest ratio of each kind."""
    ratios = []
    for augment in STRENGTHS:
        lowest = min(r["ratio"] for r in steps if r["depth"] == 0 and r["augment"] == augment)
        name = f"our epoch over the bare step, depth 0, augment {augment:g}, lowest backbone"
        ratios.append(Ratio(name, lowest, 0.90))
    frozen = [row["ratio"] for row in steps if row["depth"] > 0]
    ratios.append(
        Ratio("our epoch over the bare step, from the feature cache, median", _median(frozen))
    )
    for depth, target, what in ((0, 2.5, "depth 0"), (5, 100.0, "head alone")):
        for row in epochs:
            if row["depth"] == depth:
                precision = row["tutorial's precision"]
                name = f"an epoch, tutorial in {precision} over ours, {what}, {row['backbone']}"
                ratios.append(Ratio(name, row["ratio"], target))
    return ratios


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


if __name__ == "__main__":
    main()
