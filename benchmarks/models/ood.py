"""Compare out-of-distribution scores: ours and seven others.

    python -m benchmarks.models.ood

Each photo set in turn is the in-distribution set: four fifths of it train five folds of the linear
probe, the rest is the test set. Every score is fitted on each fold's training images, and averaged
over the folds. It has to separate the test images from those of the other sets and of
BACKGROUND_Google. Quoted are the area under the ROC curve, and the fraction flagged: images with a
score above the 95% quantile of out-of-fold images. Of external photos of the same classes only some
should be flagged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.harness.reporting import Ratio, Report, command_line, log_progress
from benchmarks.harness.workbench import (
    ImageFiles,
    background,
    class_folders,
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    pooled_features,
    read_state,
)
from search.pipeline.retraining.kfold import split_folds
from trainables.models.linear_probe import fit_head
from trainables.models.ood import energy, fit_ood_scorer, fit_subspace, residual

OURS = "residual and energy"
EXTERNAL, NO_CLASS = "caltech external", "BACKGROUND_Google"
N_FOLDS = 5
_TARGET = 0.95


@dataclass(frozen=True)
class Fold:
    """A fold's training images and linear probe, which scores are fitted on."""

    features: Tensor
    labels: Tensor
    n_classes: int
    head: Mapping[str, Tensor]

    def logits(self, features: Tensor) -> Tensor:
        """Compute the probe's logits."""
        return features @ self.head["weight"].T + self.head["bias"]


Score = Callable[[Tensor], Tensor]
"""Features [n, features] to scores [n], higher for out-of-distribution images."""


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--backbone", default="mobilenet_v2", help="default: %(default)s")
    arguments = parser.parse_args()
    report = Report("ood", "Detection of out-of-distribution images.")
    with tempfile.TemporaryDirectory() as scratch:
        known, features = _read(arguments, Path(scratch))
    names = sorted(known, key=lambda name: name != "caltech")
    rows = []
    for name in names[: 1 if arguments.mode == "quick" else None]:
        log_progress(name)
        rows += _measure(name, known, features)
    report.tables["area under the ROC curve, test images against others"] = [
        _columns(row, "auroc") for row in rows
    ]
    report.tables["fraction flagged, of test images and of others"] = [
        _columns(row, "flagged") for row in rows
    ]
    ours = next(row for row in rows if row["score"] == OURS)
    other = NO_CLASS if NO_CLASS in ours["auroc"] else next(iter(ours["auroc"]))
    report.ratios = [
        Ratio(f"area, {ours['known']} against {other}", ours["auroc"][other], _TARGET),
        Ratio(
            "lowest area of ours, all sets",
            min(
                value for row in rows if row["score"] == OURS for value in _separable(row).values()
            ),
        ),
    ]
    report.publish(arguments)
    return 0


def _separable(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the areas that should be high: all but that of external photos of the same classes."""
    return {other: area for other, area in row["auroc"].items() if other != EXTERNAL}


def _columns(row: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {"known": row["known"], "score": row["score"], **row[what]}


def _read(
    arguments: argparse.Namespace, scratch: Path
) -> tuple[dict[str, ImageFiles], dict[str, Tensor]]:
    """Return the sets that have classes, and the features of all sets."""
    if arguments.mode == "smoke":
        backbone, size = new_backbone("tinynet", None), 32
        known = {"caltech": generate_images(scratch / "a", 60)}
        sets = known | {NO_CLASS: generate_images(scratch / "b", 20, n_classes=5)}
    else:
        data, size = need_data(arguments), 224
        state = read_state(arguments.backbone, find_weights_folder(arguments, data))
        backbone, known = new_backbone(arguments.backbone, state), image_sets(data)
        sets = known | {NO_CLASS: background(data)}
        external = data / "external" / "caltech6"
        if external.is_dir():
            sets |= {EXTERNAL: class_folders(external, EXTERNAL)}
    return known, {name: pooled_features(one, backbone, size) for name, one in sets.items()}


def _measure(
    name: str, known: Mapping[str, ImageFiles], features: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Evaluate every score with one set in distribution and all others out of it."""
    x, labels = features[name], known[name].labels
    n_classes = len(known[name].classes)
    test = split_folds(np.arange(len(labels)), labels, N_FOLDS, 7)[0]
    rows = np.setdiff1d(np.arange(len(labels)), test)
    others = {other: made for other, made in features.items() if other != name}
    if name != "caltech":
        others.pop(EXTERNAL, None)
    evaluated = {"test": x[test], **others}
    found: dict[str, dict[str, list[Tensor]]] = {}
    for out_of_fold in split_folds(rows, labels, N_FOLDS, 0):
        train = np.setdiff1d(rows, out_of_fold)
        y = torch.from_numpy(labels[train])
        fold = Fold(x[train], y, n_classes, fit_head(x[train], y, n_classes))
        for score, compute in fit_scores(fold, x[out_of_fold]).items():
            by_set = found.setdefault(score, {})
            by_set.setdefault("out-of-fold", []).append(compute(x[out_of_fold]))
            for other, made in evaluated.items():
                by_set.setdefault(other, []).append(compute(made))
    results = []
    for score, by_set in found.items():
        limit = torch.quantile(torch.cat(by_set.pop("out-of-fold")).float(), 0.95)
        mean = {other: torch.stack(values).mean(0) for other, values in by_set.items()}
        inside = mean["test"]
        results.append(
            {
                "known": name,
                "score": score,
                "auroc": {o: _area(inside, mean[o]) for o in others},
                "flagged": {o: float((mean[o] > limit).float().mean()) for o in mean},
            }
        )
    return results


def fit_scores(fold: Fold, out_of_fold: Tensor) -> dict[str, Score]:
    """Fit every score on a fold's training images; ours is scaled on its out-of-fold images."""
    subspace = fit_subspace(fold.features)
    ood_score = fit_ood_scorer(
        [subspace], residual(out_of_fold, subspace), energy(fold.logits(out_of_fold))
    )
    units = _unit(fold.features)

    def nearest(k: int) -> Score:
        return lambda x: 1 - (_unit(x) @ units.T).topk(k, dim=1).values[:, -1]

    return {
        OURS: lambda x: ood_score.score(x[None], fold.logits(x)[None]),
        "residual": lambda x: residual(x, subspace),
        "energy": lambda x: energy(fold.logits(x)),
        "1 - largest probability": lambda x: 1 - fold.logits(x).softmax(1).max(1).values,
        "cosine to the nearest": nearest(1),
        "cosine to the 5th nearest": nearest(5),
        **_mahalanobis(fold),
    }


def _mahalanobis(fold: Fold) -> dict[str, Score]:
    """Fit the distance to the nearest class mean, and the same minus that to the overall mean."""
    x = fold.features
    means = torch.stack([x[fold.labels == label].mean(0) for label in range(fold.n_classes)])
    within = _precision(x - means[fold.labels])
    overall, total = x.mean(0), _precision(x - x.mean(0))

    def to_class(z: Tensor) -> Tensor:
        each = [((z - mean) @ within * (z - mean)).sum(1) for mean in means]
        return torch.stack(each).min(0).values

    def relative(z: Tensor) -> Tensor:
        return to_class(z) - ((z - overall) @ total * (z - overall)).sum(1)

    return {"Mahalanobis": to_class, "relative Mahalanobis": relative}


def _precision(centred: Tensor) -> Tensor:
    """Invert the covariance, shrunk by half towards a multiple of the identity."""
    covariance = centred.T @ centred / len(centred)
    n = len(covariance)
    return torch.linalg.inv(0.5 * covariance + 0.5 * torch.eye(n) * covariance.trace() / n)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _area(inside: Tensor, outside: Tensor) -> float:
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


if __name__ == "__main__":
    sys.exit(main())
