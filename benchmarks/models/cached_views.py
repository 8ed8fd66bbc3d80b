"""Compare the rule by which trainings draw cached views with the one that it replaced.

    python -m benchmarks.models.cached_views [--quick]

Before, the views had the magnitudes 0, 1/7, ... 1, and a training drew uniformly among those up to
its `augment`: below 1/7 nothing was augmented, and view 0 was among them always. Now magnitudes
grow quadratically, and draws have the mean of U(0, augment) without clean ones. Heads (depth 5) and
the last two stages (depth 3) of MobileNetV2 are trained from both caches at four strengths, on few
images of three photo sets; folders of test images are not read. Quoted is the difference in
validation accuracy and log loss at the last epoch, now minus before, paired by set and seed, with
Student's 95% interval of its mean, which should not reach below -0.01.

The module is long because it holds both rules.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    command_line,
    log_progress,
    mean_interval,
    stop,
)
from benchmarks.harness.workbench import (
    ImageFiles,
    build_caches,
    choose_stratified,
    class_folders,
    decode_images,
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    read_state,
)
from spaces.base import TrialConfig
from trainables.batches import ImageSet
from trainables.feature_cache import FeatureCache, view_magnitude, view_probabilities
from trainables.models.batchnorm_folding import fold_batchnorm
from trainables.models.classifier import Weights
from trainables.trainer import Trainer

BACKBONE = "mobilenet_v2"
N_VIEWS = 8
OLD_MAGNITUDES = tuple(view / (N_VIEWS - 1) for view in range(N_VIEWS))


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        n_seeds: Number of seeds, each with its own images and views.
        n_train: Training images of each set.
        n_val: Validation images of each set, at most.
        image_size: Side in pixels.
        epochs: By depth, the epochs of a training.
        repeats: By depth, how many trainings of a seed are averaged.
        sets: Names of the photo sets.
        strengths: Augmentation strengths.
    """

    n_seeds: int
    n_train: int
    n_val: int
    image_size: int
    epochs: dict[int, int]
    repeats: dict[int, int]
    sets: tuple[str, ...]
    strengths: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)


_SETS = ("flowers", "products", "tools")
PLANS = {
    "full": Plan(3, 60, 150, 128, {5: 20, 3: 6}, {5: 2, 3: 1}, _SETS),
    "quick": Plan(2, 48, 100, 128, {5: 20}, {5: 2}, _SETS),
    "smoke": Plan(2, 9, 12, 64, {5: 1}, {5: 1}, ("generated",), (0.3,)),
}


class UniformDraw(FeatureCache):
    """A cache of views at magnitudes v / (V - 1), drawn uniformly up to the strength."""

    def draw(self, rows: Tensor, augment: float, generator: torch.Generator) -> Tensor:
        """Return one view of each image: bfloat16 [n, *shape]."""
        n_drawn = count_uniform_views(augment)
        view_of = torch.randint(n_drawn, (len(rows),), generator=generator)
        return self._gather(self.row_of[rows], view_of)


def count_uniform_views(augment: float) -> int:
    """Count the views of magnitude at most `augment` under the earlier rule."""
    return int(augment * (N_VIEWS - 1) + 1e-9) + 1


@dataclass(frozen=True)
class Outcome:
    """Validation results at the last epoch, averaged over the trainings of a seed."""

    accuracy: float
    loss: float


Pairs = dict[tuple[int, float], list[tuple[str, Outcome, Outcome]]]
"""By depth and strength: the set, the result under the earlier rule, and under the new one."""


def main() -> None:
    """Run the benchmark."""
    parser = command_line(__doc__, data=True)
    parser.add_argument("--depth", type=int, choices=(3, 5), help="only this one (default: both)")
    arguments = parser.parse_args()
    plan = PLANS[arguments.mode]
    if arguments.depth in plan.epochs:
        plan = replace(plan, epochs={arguments.depth: plan.epochs[arguments.depth]})
    report = Report("cached_views", "Draws from the cached views: the new rule against the old.")
    pairs: Pairs = {}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.mode == "smoke":
            sets, state = {"generated": generate_images(Path(scratch), 36)}, None
        else:
            data = need_data(arguments)
            sets = {**image_sets(data), "flowers": class_folders(data / "flowers/train", "flowers")}
            state = read_state(BACKBONE, find_weights_folder(arguments, data))
            if state is None:
                stop(f"there are no weights of {BACKBONE}; give the folder with --weights")
        units = [(name, seed) for seed in range(plan.n_seeds) for name in plan.sets]
        with _workers(arguments.mode) as pool:
            started = [
                pool.submit(compare, plan, name, sets[name], state, seed) for name, seed in units
            ]
            for part in started:
                for key, found in part.result().items():
                    pairs.setdefault(key, []).extend(found)
    report.tables["Draws of each strength"] = [_describe_draws(a) for a in plan.strengths]
    report.tables["Now minus before, paired by set and seed"] = [
        *(_row(f"depth {depth}, augment {a}", found) for (depth, a), found in pairs.items()),
        *(
            _row(f"depth {depth}, mean", _average([pairs[depth, a] for a in plan.strengths]))
            for depth in plan.epochs
        ),
    ]
    report.tables["Validation accuracy under the new rule"] = [
        _by_strength(plan, pairs, depth, name) for depth in plan.epochs for name in plan.sets
    ]
    for depth in plan.epochs:
        found = _average([pairs[depth, a] for a in plan.strengths])
        _, low, high = mean_interval([new.accuracy - old.accuracy for _, old, new in found])
        report.ratios += [
            Ratio(f"depth {depth}: lower end of the accuracy difference's interval", low, -0.01),
            Ratio(f"depth {depth}: upper end of the accuracy difference's interval", high),
        ]
    report.notes.append(
        f"{BACKBONE}, {plan.image_size} px, V = {N_VIEWS}, {plan.n_seeds} seeds of each set,"
        f" {plan.n_train} training images, up to {plan.n_val} validation images"
    )
    report.extra["pairs"] = [
        {"depth": depth, "augment": a, "set": name, "before": vars(old), "now": vars(new)}
        for (depth, a), found in pairs.items()
        for name, old, new in found
    ]
    report.publish(arguments)


def _workers(mode: str) -> Executor:
    """Return processes, one per core; a thread of this process where little is measured."""
    if mode == "smoke":
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def compare(plan: Plan, name: str, files: ImageFiles, state: Weights | None, seed: int) -> Pairs:
    """Train at every depth and strength from both caches of a seed's images, on one core."""
    torch.set_num_threads(1)
    pairs: Pairs = {}
    chosen = choose_stratified(files.labels, plan.n_train + plan.n_val, seed)
    images = decode_images(files.take(chosen), plan.image_size)
    is_train = torch.zeros(len(chosen), dtype=torch.bool)
    is_train[torch.from_numpy(choose_stratified(images.labels.numpy(), plan.n_train, seed))] = True
    train, val = is_train.nonzero().squeeze(1), (~is_train).nonzero().squeeze(1)
    frozen, outputs = fold_batchnorm(new_backbone(BACKBONE, state).eval()), sorted(plan.epochs)
    before = build_caches(frozen, images, train, outputs, N_VIEWS, OLD_MAGNITUDES, seed=seed)
    now = build_caches(frozen, images, train, outputs, N_VIEWS, seed=seed)
    clean = build_caches(frozen, images, val, outputs, 1)
    for depth in plan.epochs:
        old = before[depth]
        sources = UniformDraw(old.views, N_VIEWS, old.row_of, old.block_size), now[depth]
        for augment in plan.strengths:
            lr = 5e-3 if depth == 5 else 3e-4
            config = TrialConfig(
                BACKBONE, lr, depth, augment=augment, batch_size=16, scheduler="cosine"
            )
            results = [
                _train(plan, config, images, train, val, state, seed, source, clean[depth])
                for source in sources
            ]
            pairs.setdefault((depth, augment), []).append((name, *results))  # type: ignore[arg-type]
            log_progress(
                f"{name}, seed {seed}, depth {depth}, augment {augment}: before"
                f" {results[0].accuracy:.4f}, now {results[1].accuracy:.4f}"
            )
    return pairs


def _train(
    plan: Plan,
    config: TrialConfig,
    images: ImageSet,
    train: Tensor,
    val: Tensor,
    state: Weights | None,
    seed: int,
    cache: FeatureCache,
    clean: FeatureCache,
) -> Outcome:
    """Train a configuration several times from a cache; evaluate on the clean features."""
    epochs = plan.epochs[config.freeze_depth]
    accuracies, losses = [], []
    for repeat in range(plan.repeats[config.freeze_depth]):
        number = 1000 * seed + repeat
        network = new_backbone(BACKBONE, state)
        trainer = Trainer(
            config, network, images, train, val[:0], epochs=epochs, seed=number, cache=cache
        )
        for _ in range(epochs):
            trainer.run_epoch()
        evaluator = Trainer(config, network, images, val, val, epochs=1, seed=0, cache=clean)
        evaluator.model.head.load_state_dict(trainer.model.head.state_dict())
        logits, labels = evaluator.predict_logits(val), images.labels[val]
        accuracies.append(float((logits.argmax(1) == labels).float().mean()))
        losses.append(float(F.cross_entropy(logits, labels)))
    return Outcome(mean(accuracies), mean(losses))


def _average(
    by_strength: Sequence[list[tuple[str, Outcome, Outcome]]],
) -> list[tuple[str, Outcome, Outcome]]:
    """Average the strengths within each pair of set and seed."""

    def average(outcomes: Sequence[Outcome]) -> Outcome:
        return Outcome(mean(o.accuracy for o in outcomes), mean(o.loss for o in outcomes))

    return [
        (group[0][0], average([old for _, old, _ in group]), average([new for *_, new in group]))
        for group in zip(*by_strength, strict=True)
    ]


def _row(label: str, found: list[tuple[str, Outcome, Outcome]]) -> dict[str, Any]:
    center, low, high = mean_interval([new.accuracy - old.accuracy for _, old, new in found])
    loss, loss_low, loss_high = mean_interval([new.loss - old.loss for _, old, new in found])
    return {
        "configuration": label,
        "before": mean(old.accuracy for _, old, _ in found),
        "now": mean(new.accuracy for *_, new in found),
        "difference": center,
        "low": low,
        "high": high,
        "loss difference": loss,
        "loss low": loss_low,
        "loss high": loss_high,
    }


def _by_strength(plan: Plan, pairs: Pairs, depth: int, name: str) -> dict[str, Any]:
    accuracies = {
        f"augment {a}": mean(
            new.accuracy for set_name, _, new in pairs[depth, a] if set_name == name
        )
        for a in plan.strengths
    }
    return {"set": name, "depth": depth, **accuracies}


def _describe_draws(augment: float) -> dict[str, Any]:
    n_drawn, probabilities = count_uniform_views(augment), view_probabilities(augment, N_VIEWS)
    return {
        "augment": augment,
        "mean before": mean(OLD_MAGNITUDES[:n_drawn]),
        "clean before": 1 / n_drawn,
        "mean now": sum(p * view_magnitude(v, N_VIEWS) for v, p in enumerate(probabilities)),
        "clean now": probabilities[0],
    }


if __name__ == "__main__":
    main()
