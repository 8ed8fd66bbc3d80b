"""Compare fine-tuning from the linear probe's head (LP-FT, arXiv 2202.10054) and a random one.

    python -m benchmarks.models.lp_ft [--quick]

The same configurations of MobileNetV2 on Caltech-101's six classes, once with a random head and
once with the probe's, over several seeds, each with its own training images. Quoted is the
difference in accuracy, probe minus random, paired by seed, with Student's 95% interval of its mean:
on the test set and on the external test set, after one epoch (which ASHA compares) and after the
last. With many training images every image is classified correctly after an epoch or two, so a
second table has few.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    command_line,
    log_progress,
    mean_interval,
    stop,
)
from benchmarks.harness.workbench import (
    CALTECH_SIX,
    ImageFiles,
    build_cache,
    caltech_six,
    choose_stratified,
    decode_images,
    find_weights_folder,
    generate_images,
    need_data,
    new_backbone,
    read_state,
)
from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.feature_cache import FeatureCache
from trainables.models.classifier import Weights
from trainables.models.linear_probe import fit_head
from trainables.trainer import Trainer

BACKBONE = "mobilenet_v2"
N_VIEWS = 4
_STARTS = ("random head", "probe's head")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        n_seeds: Number of seeds, at least 2.
        n_train: Training images, one table per number; the rest of the set is the test set.
        depths: Freeze depths, from 1.
        lrs: Learning rates.
        epochs: Epochs of every training.
        image_size: Side in pixels.
    """

    n_seeds: int
    n_train: tuple[int, ...]
    depths: tuple[int, ...]
    lrs: tuple[float, ...]
    epochs: int
    image_size: int


PLANS = {
    "full": Plan(3, (600, 60), (4, 5), (1e-4, 1e-3), 6, 224),
    "quick": Plan(3, (60,), (4,), (1e-3,), 3, 224),
    "smoke": Plan(2, (12,), (5,), (1e-3,), 1, 64),
}

Key = tuple[int, int, float, int, str]
"""Training images, depth, learning rate, epoch, and the test set."""


def main() -> None:
    """Run the benchmark."""
    arguments = command_line(__doc__, data=True).parse_args()
    plan = PLANS[arguments.mode]
    report = Report("lp_ft", "Fine-tuning from the probe's head against a random one.")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.mode == "smoke":
            files, state = generate_images(Path(scratch), 48), None
            n_inside = 36
        else:
            data = need_data(arguments)
            inside = caltech_six(data)
            files, n_inside = with_external(inside, data), len(inside.paths)
            state = read_state(BACKBONE, find_weights_folder(arguments, data))
            if state is None:
                stop(f"there are no weights of {BACKBONE}; give the folder with --weights")
        images = decode_images(files, plan.image_size)
    found = compare(plan, images, state, n_inside)
    for n_train in plan.n_train:
        rows = [_row(key, pairs) for key, pairs in found.items() if key[0] == n_train]
        report.tables[f"{n_train} training images, {plan.n_seeds} seeds"] = rows
    for where in ("test", "external"):
        for epoch in sorted({1, plan.epochs}):
            chosen = [p for key, p in found.items() if key[3:] == (epoch, where)]
            by_seed = [mean(p[s][1] - p[s][0] for p in chosen) for s in range(plan.n_seeds)]
            center, low, high = mean_interval(by_seed)
            report.ratios.append(Ratio(f"{where}, epoch {epoch}: accuracy gained", center))
            report.notes.append(f"{where}, epoch {epoch}: 95% CI {low:+.4f} to {high:+.4f}")
    report.publish(arguments)


def with_external(files: ImageFiles, data: Path) -> ImageFiles:
    """Append the external images of the same classes."""
    folder = data / "external" / "caltech6"
    paths, labels = list(files.paths), list(files.labels)
    for label, name in enumerate(CALTECH_SIX):
        found = sorted(path for path in (folder / name).glob("*") if path.is_file())
        paths += found
        labels += [label] * len(found)
    if len(paths) == len(files.paths):
        stop(f"{folder} has no images in folders {', '.join(CALTECH_SIX)}")
    return replace(files, paths=tuple(paths), labels=np.array(labels))


def compare(
    plan: Plan, images: ImageSet, state: Weights | None, n_inside: int
) -> dict[Key, list[tuple[float, float]]]:
    """Train everything from both heads; return pairs of accuracies, one per seed."""
    found: dict[Key, list[tuple[float, float]]] = {}
    external = torch.arange(n_inside, len(images.labels))
    every = torch.arange(len(images.labels))
    feature_cache: dict[int, FeatureCache] = {}
    for depth in {*plan.depths, 5}:
        backbone = new_backbone(BACKBONE, state)
        feature_cache[depth] = build_cache(backbone, images, every, depth, N_VIEWS)
        log_progress(f"depth {depth}: cached {N_VIEWS} views")
    for n_train in plan.n_train:
        for seed in range(plan.n_seeds):
            chosen = choose_stratified(images.labels[:n_inside].numpy(), n_train, seed)
            train = torch.from_numpy(chosen).sort().values
            is_left = torch.ones(n_inside, dtype=torch.bool)
            is_left[train] = False
            parts = {"test": is_left.nonzero().squeeze(1), "external": external}
            head = fit_head(feature_cache[5].clean(train), images.labels[train], images.n_classes)
            for depth in plan.depths:
                for lr in plan.lrs:
                    config = TrialConfig(BACKBONE, lr, depth, augment=0.5, scheduler="cosine")
                    both = [
                        _train(
                            plan, config, images, train, parts, state, seed, feature_cache, start
                        )
                        for start in (None, head)
                    ]
                    for (epoch, where), right in both[0].items():
                        pair = (right, both[1][epoch, where])
                        found.setdefault((n_train, depth, lr, epoch, where), []).append(pair)
            log_progress(f"{n_train} images, seed {seed}")
    return found


def _train(
    plan: Plan,
    config: TrialConfig,
    images: ImageSet,
    train: torch.Tensor,
    parts: dict[str, torch.Tensor],
    state: Weights | None,
    seed: int,
    feature_cache: dict[int, FeatureCache],
    head: Weights | None,
) -> dict[tuple[int, str], float]:
    """Train a configuration; return accuracy by epoch (the first and the last) and test set."""
    trainer = Trainer(
        config,
        new_backbone(BACKBONE, state),
        images,
        train,
        train[:0],
        epochs=plan.epochs,
        seed=seed,
        cache=feature_cache[config.freeze_depth],
        initial_head=head,
    )
    right = {}
    for epoch in range(1, plan.epochs + 1):
        trainer.run_epoch()
        if epoch in (1, plan.epochs):
            for where, rows in parts.items():
                predicted = trainer.predict_logits(rows).argmax(1)
                right[epoch, where] = float((predicted == images.labels[rows]).float().mean())
    return right


def _row(key: Key, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    _, depth, lr, epoch, where = key
    center, low, high = mean_interval([probe - random for random, probe in pairs])
    return {
        "configuration": f"depth {depth}, lr {lr:g}",
        "epoch": epoch,
        "test set": where,
        **{start: mean(pair[i] for pair in pairs) for i, start in enumerate(_STARTS)},
        "difference": center,
        "low": low,
        "high": high,
    }


if __name__ == "__main__":
    main()
