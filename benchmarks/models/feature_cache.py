"""Compare the accuracy of training from the feature cache and on freshly augmented images.

    python -m benchmarks.models.feature_cache [--quick]

The same configurations, with the cache and without it (features computed when they are needed,
with the same distribution of augmentations), over 5 seeds, each with its own few training images
of Caltech-101's six classes; the others are the validation set. Quoted is the difference in
validation accuracy at the last epoch, with minus without the cache, paired by seed, with Student's
95% interval of its mean: it should include 0, or lie above. Then the cache's size and the seconds
to build it, and a head's accuracy, by the number of augmented views V.

The module is long because it holds both sides and the table of cache sizes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    command_line,
    log_progress,
    mean_interval,
    stop,
)
from benchmarks.harness.workbench import (
    build_cache,
    caltech_six,
    choose_per_class,
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
from trainables.feature_cache import FeatureCache, bytes_per_image
from trainables.models.classifier import Weights
from trainables.trainer import Trainer

BACKBONE = "squeezenet1_0"
# Few images and small batches keep accuracies well below 1, so that differences show. The learning
# rates are those that suit training from the cache.
_COMMON: dict[str, Any] = {"batch_size": 16, "scheduler": "cosine"}
CONFIGS = (
    TrialConfig(BACKBONE, lr=5e-3, freeze_depth=5, augment=0.3, **_COMMON),
    TrialConfig(BACKBONE, lr=5e-3, freeze_depth=5, augment=0.8, **_COMMON),
    TrialConfig(BACKBONE, lr=1e-3, freeze_depth=4, augment=0.5, **_COMMON),
    TrialConfig(BACKBONE, lr=3e-4, freeze_depth=3, augment=0.8, **_COMMON),
)
N_VIEWS = 8  # the spaces' own


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        n_seeds: Number of seeds, at least 2.
        n_per_class: Training images of each class.
        n_val: Validation images, stratified by class.
        epochs: Epochs of every training.
        image_size: Side in pixels.
        configs: Configurations to train.
        views: V of the second table.
    """

    n_seeds: int
    n_per_class: int
    n_val: int
    epochs: int
    image_size: int
    configs: tuple[TrialConfig, ...]
    views: tuple[int, ...]


PLANS = {
    "full": Plan(5, 10, 400, 20, 224, CONFIGS, (1, 2, 4, 8, 16)),
    "quick": Plan(3, 6, 80, 8, 224, CONFIGS[1:3], (1, 2, 4)),
    "smoke": Plan(2, 4, 12, 1, 64, CONFIGS[:1], (1, 2)),
}


@dataclass(frozen=True)
class Outcome:
    """Validation results at a training's last epoch, and the median seconds of its epochs."""

    accuracy: float
    loss: float
    epoch_seconds: float


def main() -> None:
    """Run the benchmark."""
    parser = command_line(__doc__, data=True)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: all cores)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plan = PLANS[arguments.mode]
    report = Report("feature_cache", "Training from the feature cache against training without it.")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.mode == "smoke":
            files, state = generate_images(Path(scratch), 48), None
        else:
            data = need_data(arguments)
            files = caltech_six(data)
            state = read_state(BACKBONE, find_weights_folder(arguments, data))
            if state is None:
                stop(f"there are no weights of {BACKBONE}; give the folder with --weights")
        images = decode_images(files, plan.image_size)
    pairs = compare(plan, images, state)
    growth = measure_by_views(plan, images, state)
    report.tables["With minus without the cache, paired by seed"] = [
        *(_row(config, pairs[config]) for config in plan.configs),
        _mean_row(plan, pairs),
    ]
    n_train = plan.n_per_class * images.n_classes
    report.tables[f"The cache by V ({n_train} images; the head's augment is 1)"] = growth
    report.ratios += _ratios(plan, pairs)
    report.notes.append(
        f"{plan.n_seeds} seeds, {plan.n_per_class} training images per class, {plan.n_val} for"
        f" validation, {plan.epochs} epochs, V = {N_VIEWS}, {files.origin}, {plan.image_size} px"
    )
    report.extra["pairs"] = [
        {
            **vars(config),
            "cached": [vars(a) for a, _ in found],
            "uncached": [vars(b) for _, b in found],
        }
        for config, found in pairs.items()
    ]
    report.publish(arguments)


def draw_rows(plan: Plan, images: ImageSet, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a seed's training rows, and validation rows from the others."""
    labels = images.labels.numpy()
    train = torch.from_numpy(choose_per_class(labels, plan.n_per_class, seed)).sort().values
    left = torch.ones(len(labels), dtype=torch.bool)
    left[train] = False
    others = left.nonzero().squeeze(1)
    chosen = choose_stratified(labels[others.numpy()], plan.n_val, seed)
    return train, others[torch.from_numpy(chosen)]


def compare(
    plan: Plan, images: ImageSet, state: Weights | None
) -> dict[TrialConfig, list[tuple[Outcome, Outcome]]]:
    """Train every configuration with and without the cache; return both outcomes by seed."""
    pairs: dict[TrialConfig, list[tuple[Outcome, Outcome]]] = {c: [] for c in plan.configs}
    for seed in range(plan.n_seeds):
        train, val = draw_rows(plan, images, seed)
        for config in plan.configs:
            backbone = new_backbone(BACKBONE, state)
            cache = build_cache(backbone, images, train, config.freeze_depth, N_VIEWS, seed=seed)
            both = tuple(
                _train(plan, config, images, train, val, state, seed, source)
                for source in (cache, None)
            )
            pairs[config].append(both)  # type: ignore[arg-type]
            log_progress(
                f"seed {seed} depth {config.freeze_depth} augment {config.augment}: with"
                f" {both[0].accuracy:.4f}, without {both[1].accuracy:.4f}"
            )
    return pairs


def _train(
    plan: Plan,
    config: TrialConfig,
    images: ImageSet,
    train: torch.Tensor,
    val: torch.Tensor,
    state: Weights | None,
    seed: int,
    cache: FeatureCache | None,
) -> Outcome:
    """Train a configuration; the trainings of a pair differ only in their inputs."""
    trainer = Trainer(
        config,
        new_backbone(BACKBONE, state),
        images,
        train,
        val[:0],
        epochs=plan.epochs,
        seed=seed,
        cache=cache,
    )
    seconds = [trainer.run_epoch().seconds for _ in range(plan.epochs)]
    # The cache holds only the training images, so both are evaluated on the images themselves.
    evaluator = Trainer(
        config, trainer.model.backbone, images, train, val, epochs=1, seed=seed, cache=None
    )
    evaluator.model.head.load_state_dict(trainer.model.head.state_dict())
    logits, labels = evaluator.predict_logits(val), images.labels[val]
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return Outcome(accuracy, float(F.cross_entropy(logits, labels)), median(seconds))


def measure_by_views(plan: Plan, images: ImageSet, state: Weights | None) -> list[dict[str, Any]]:
    """Build caches of 1 to V views; train a head from each."""
    config = TrialConfig(BACKBONE, lr=5e-3, freeze_depth=5, augment=1.0, **_COMMON)
    n_train = plan.n_per_class * images.n_classes
    per_image = bytes_per_image(new_backbone(BACKBONE, state), plan.image_size)
    rows = []
    for n_views in plan.views:
        seconds, accuracies = [], []
        for seed in range(plan.n_seeds):
            train, val = draw_rows(plan, images, seed)
            backbone = new_backbone(BACKBONE, state)
            started = perf_counter()
            cache = build_cache(backbone, images, train, 5, n_views, seed=seed)
            seconds.append(perf_counter() - started)
            found = _train(plan, config, images, train, val, state, seed, cache)
            accuracies.append(found.accuracy)
        log_progress(f"V = {n_views}: {median(seconds):.1f} s, accuracy {mean(accuracies):.4f}")
        sizes = {f"depth {b} MB": per_image[b - 1] * n_train * n_views / 2**20 for b in (3, 4, 5)}
        rows.append(
            {
                "V": n_views,
                **sizes,
                "build seconds": median(seconds),
                "ms per view and image": 1000 * median(seconds) / n_views / n_train,
                "head's val accuracy": mean(accuracies),
                "± sd": stdev(accuracies),
            }
        )
    return rows


def _row(config: TrialConfig, found: list[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    center, low, high = mean_interval([a.accuracy - b.accuracy for a, b in found])
    loss, loss_low, loss_high = mean_interval([a.loss - b.loss for a, b in found])
    cached, uncached = (median(o[i].epoch_seconds for o in found) for i in (0, 1))
    return {
        "configuration": f"depth {config.freeze_depth}, augment {config.augment}",
        "with cache": mean(a.accuracy for a, _ in found),
        "without": mean(b.accuracy for _, b in found),
        "difference": center,
        "low": low,
        "high": high,
        "loss difference": loss,
        "loss low": loss_low,
        "loss high": loss_high,
        "epoch s, with cache": cached,
        "epoch s, without": uncached,
        "times faster": uncached / cached,
    }


def _mean_row(
    plan: Plan, pairs: dict[TrialConfig, list[tuple[Outcome, Outcome]]]
) -> dict[str, Any]:
    """Average the configurations within each seed, then compare by seed."""
    by_seed = _mean_differences(plan, pairs)
    center, low, high = mean_interval(by_seed)
    every = [outcome for found in pairs.values() for outcome in found]
    return {
        "configuration": "mean of all",
        "with cache": mean(a.accuracy for a, _ in every),
        "without": mean(b.accuracy for _, b in every),
        "difference": center,
        "low": low,
        "high": high,
    }


def _mean_differences(
    plan: Plan, pairs: dict[TrialConfig, list[tuple[Outcome, Outcome]]]
) -> list[float]:
    return [
        mean(found[seed][0].accuracy - found[seed][1].accuracy for found in pairs.values())
        for seed in range(plan.n_seeds)
    ]


def _ratios(plan: Plan, pairs: dict[TrialConfig, list[tuple[Outcome, Outcome]]]) -> list[Ratio]:
    _, _, high = mean_interval(_mean_differences(plan, pairs))
    every = [outcome for found in pairs.values() for outcome in found]
    accuracy = mean(a.accuracy for a, _ in every) / mean(b.accuracy for _, b in every)
    seconds = median(b.epoch_seconds / a.epoch_seconds for a, b in every)
    return [
        Ratio("upper end of the interval of the mean accuracy difference", high, 0.0),
        Ratio("accuracy, with over without cache", accuracy),
        Ratio("seconds per epoch, without over with cache, median of all", seconds),
    ]


if __name__ == "__main__":
    main()
