"""Count how often rules keep the centre-crop branch, and how often wrongly.

    python -m benchmarks.models.center_crop_rule [--data DIR]

A draw takes half of a photo set of at most 400 images, or 100 images, and fits linear probes of
whole images and of enlarged centres in five folds, as a run does. Each rule decides by the draw's
out-of-fold log loss whether the branch is kept. The other images of the set, which chose nothing,
show what the branch is worth: the log loss of the ensemble of the folds with it and without. A
branch is kept wrongly where that is not lower with it. Images of a test set that docs/ report on
take no part.

Features are cached in results/center_crop_rule/; delete it to compute them again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress, stop
from benchmarks.harness.workbench import (
    ImageFiles,
    choose_stratified,
    decode_images,
    find_weights_folder,
    generate_images,
    need_data,
    new_backbone,
    read_state,
)
from search.data.scan import find_images
from search.data.splits import split
from search.evaluation.calibration import fit_temperature, log_losses, measure_calibration
from search.pipeline.retraining.kfold import split_folds
from spaces import caltech, cats_dogs, products, tools
from spaces.sources import Source, folder
from trainables.compute import mixed_precision
from trainables.images import crop_pixels
from trainables.models.backbones import Backbone
from trainables.models.center_crop import enlarge_center
from trainables.models.ensemble import mean_probabilities
from trainables.models.linear_probe import fit_head

SETS: Mapping[str, tuple[Source, str]] = {
    "caltech": (caltech.SPACE.source, "caltech101"),
    "cats_dogs": (cats_dogs.SPACE.source, "cats_dogs"),
    "products": (products.SPACE.source, "products"),
    "tools": (tools.SPACE.source, "tools"),
    "flowers": (folder(), "flowers"),
}
"""By set, its source and its folder in --data."""

RULES = ("never", "always", "lower", "lower by 1%", "1 SE", "2 SE")
N_FOLDS = 5
_SMALL = 100
_MAX_IMAGES = 400  # of a set
_REPORTED_SEEDS = range(3)
"""Seeds of the runs whose test sets docs/ report on."""
_STORE = ROOT / "results" / "center_crop_rule"


@dataclass(frozen=True)
class Features:
    """Pooled features, float32 [n, d], of whole images and of enlarged centres; labels [n]."""

    whole: Tensor
    center: Tensor
    labels: np.ndarray


@dataclass(frozen=True)
class Draw:
    """What a draw's out-of-fold images say of the branch, and what the other images say.

    Attributes:
        gain: Mean out-of-fold log loss without the branch minus that with it.
        standard_error: Of the gain, paired by image.
        baseline: Out-of-fold log loss without the branch.
        true_gain: The same difference on the other images.
        true_accuracy_gain: Their accuracy with the branch minus that without.
    """

    gain: float
    standard_error: float
    baseline: float
    true_gain: float
    true_accuracy_gain: float

    def keeps(self, rule: str) -> bool:
        """Return whether a rule keeps the branch."""
        bounds = {
            "never": np.inf,
            "always": -np.inf,
            "lower": 0.0,
            "lower by 1%": 0.01 * self.baseline,
            "1 SE": self.standard_error,
            "2 SE": 2 * self.standard_error,
        }
        return bool(self.gain > bounds[rule])


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--backbone", default="mobilenet_v2", help="default: %(default)s")
    arguments = parser.parse_args()
    n_seeds = {"smoke": 1, "quick": 3, "full": 20}[arguments.mode]
    report = Report(
        "center_crop_rule", "Draws in which a rule keeps the centre-crop branch, and wrongly."
    )
    draws: dict[str, list[Draw]] = {}
    for name, features in _read(arguments).items():
        log_progress(name)
        half = len(features.labels) // 2
        for size in sorted({min(_SMALL, half), half}):
            draws[f"{name}, {size}"] = [_draw(features, size, seed) for seed in range(n_seeds)]
    every = [draw for some in draws.values() for draw in some]
    report.tables[f"{len(every)} draws"] = [_count(rule, every) for rule in RULES]
    report.tables["kept, and wrongly, by set and size of the draw"] = [
        {"draws": name, "helps in": sum(d.true_gain > 0 for d in some)}
        | {rule: "{kept} ({wrongly})".format(**_count(rule, some)) for rule in RULES[2:]}
        for name, some in draws.items()
    ]
    report.ratios = [
        Ratio(f"{rule}: kept wrongly, of all kept", _count(rule, every)["wrongly, of kept"])
        for rule in RULES[2:]
    ]
    report.publish(arguments)
    return 0


def _count(rule: str, draws: list[Draw]) -> dict[str, Any]:
    kept = [draw.keeps(rule) for draw in draws]
    wrongly = sum(k and d.true_gain <= 0 for k, d in zip(kept, draws, strict=True))
    missed = sum(not k and d.true_gain > 0 for k, d in zip(kept, draws, strict=True))
    return {
        "rule": rule,
        "kept": sum(kept),
        "wrongly": wrongly,
        "wrongly, of kept": wrongly / sum(kept) if any(kept) else float("nan"),
        "missed": missed,
        "log loss gained, 1e-3": 1000
        * fmean(k * d.true_gain for k, d in zip(kept, draws, strict=True)),
        "accuracy gained, points": 100
        * fmean(k * d.true_accuracy_gain for k, d in zip(kept, draws, strict=True)),
    }


def _draw(features: Features, size: int, seed: int) -> Draw:
    """Fit the probes of a draw's folds; compare its out-of-fold images with the others."""
    labels = features.labels
    drawn = np.sort(choose_stratified(labels, size, seed))
    others = np.setdiff1d(np.arange(len(labels)), drawn)
    folds = split_folds(drawn, labels, N_FOLDS, seed)
    n_classes = int(labels.max()) + 1
    out_of_fold, of_others = [], []
    for x in (features.whole, features.center):
        logits, members = [], []
        for fold in folds:
            train = np.setdiff1d(drawn, fold)
            head = fit_head(x[train], torch.from_numpy(labels[train]), n_classes)
            logits.append(x[fold] @ head["weight"].T + head["bias"])
            members.append(x[others] @ head["weight"].T + head["bias"])
        out_of_fold.append(torch.cat(logits).numpy())
        of_others.append(torch.stack(members))
    y = labels[np.concatenate(folds)]
    temperature = fit_temperature(out_of_fold[0], y)
    scale = temperature / fit_temperature(out_of_fold[1], y)
    both = out_of_fold[0] + scale * out_of_fold[1]
    temperature_of_both = fit_temperature(both, y)
    baseline = log_losses(out_of_fold[0], y, temperature)
    gains = baseline - log_losses(both, y, temperature_of_both)
    losses, accuracies = [], []
    for logits_of_others, divisor in (
        (of_others[0], temperature),
        (of_others[0] + scale * of_others[1], temperature_of_both),
    ):
        probabilities = mean_probabilities(logits_of_others, divisor).numpy()
        losses.append(measure_calibration(labels[others], probabilities).log_loss)
        accuracies.append(float((probabilities.argmax(1) == labels[others]).mean()))
    return Draw(
        gain=float(gains.mean()),
        standard_error=float(gains.std(ddof=1) / len(gains) ** 0.5),
        baseline=float(baseline.mean()),
        true_gain=losses[0] - losses[1],
        true_accuracy_gain=accuracies[1] - accuracies[0],
    )


def _read(arguments: argparse.Namespace) -> dict[str, Features]:
    """Compute the features of every set and backbone, or load cached ones."""
    if arguments.mode == "smoke":
        with tempfile.TemporaryDirectory() as scratch:
            images = generate_images(Path(scratch), 60)
            return {"generated": _features(images, new_backbone("tinynet", None), 32)}
    data = need_data(arguments)
    state = read_state(arguments.backbone, find_weights_folder(arguments, data))
    if state is None:
        stop(f"there are no weights of {arguments.backbone}; give the folder with --weights")
    network, found = new_backbone(arguments.backbone, state), {}
    for name, (source, place) in SETS.items():
        if not (data / place).is_dir():
            continue
        path = _STORE / f"{name}-{arguments.backbone}.pt"
        if not path.is_file():
            log_progress(f"features: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            made = _features(_unreported(source, data / place, name), network, 224)
            torch.save(vars(made) | {"labels": torch.from_numpy(made.labels)}, path)
        loaded = torch.load(path, weights_only=True)
        found[name] = Features(**loaded | {"labels": loaded["labels"].numpy()})
    return found


def _unreported(source: Source, data: Path, name: str) -> ImageFiles:
    """List the images of a set that are in no test set of the runs that docs/ report on.

    Classes with too few for the folds of half of them are left out.
    """
    manifest = find_images(source, data, data)
    if manifest.paths is None:
        raise TypeError("these sets are files")
    indices = np.arange(len(manifest.names))
    splits = [split(manifest, indices, 0.2, 0.2, seed, N_FOLDS) for seed in _REPORTED_SEEDS]
    kept = indices[(np.stack(splits) != "test").all(axis=0)]
    counts = np.bincount(manifest.labels[kept])
    kept = kept[counts[manifest.labels[kept]] >= 2 * N_FOLDS]
    kept = kept[np.sort(choose_stratified(manifest.labels[kept], _MAX_IMAGES, seed=0))]
    used, labels = np.unique(manifest.labels[kept], return_inverse=True)
    classes = tuple(manifest.classes[label] for label in used)
    return ImageFiles(tuple(manifest.paths[i] for i in kept), labels, classes, name)


@torch.no_grad()
def _features(images: ImageFiles, network: Backbone, size: int) -> Features:
    network.eval()
    whole, center = [], []
    for batch in decode_images(images, size).table.split(32):
        pixels = crop_pixels(batch, size)
        with mixed_precision(torch.device("cpu")):
            whole.append(network(pixels).float())
            center.append(network(enlarge_center(pixels)).float())
    return Features(torch.cat(whole), torch.cat(center), images.labels)


if __name__ == "__main__":
    sys.exit(main())
