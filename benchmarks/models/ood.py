"""Which score best tells images that are not like the training images?

    python -m benchmarks.models.ood

Each photo set in turn is what a model knows: four fifths of it train five folds of the linear
probe, the rest is held out. Every score is fitted on each fold's training images, and averaged
over the five. It is to tell the held-out images from those of the other sets and of
BACKGROUND_Google. The area under the ROC curve says how well it orders them; the share flagged,
above what 95 % of out-of-fold images do not exceed, how well it decides. Of photos of the known
classes from elsewhere only some should be flagged.
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
ELSEWHERE, NO_CLASS = "caltech external", "BACKGROUND_Google"
N_FOLDS = 5
_TARGET = 0.95


@dataclass(frozen=True)
class Fold:
    """What a score may be fitted on: a fold's training images."""

    features: Tensor
    labels: Tensor
    n_classes: int
    head: Mapping[str, Tensor]

    def logits(self, features: Tensor) -> Tensor:
        """Return the probe's logits."""
        return features @ self.head["weight"].T + self.head["bias"]


Score = Callable[[Tensor], Tensor]
"""Features [n, features] to scores [n], the higher the stranger."""


def main() -> int:
    """Measure, print a table, and keep it as JSON."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--backbone", default="mobilenet_v2", help="default: %(default)s")
    arguments = parser.parse_args()
    report = Report("ood_score", "Telling images that are not like the training images.")
    with tempfile.TemporaryDirectory() as scratch:
        known, features = _read(arguments, Path(scratch))
    names = sorted(known, key=lambda name: name != "caltech")
    rows = []
    for name in names[: 1 if arguments.mode == "quick" else None]:
        log_progress(name)
        rows += _measure(name, known, features)
    report.tables["area under the ROC curve, held-out images against others"] = [
        _columns(row, "auroc") for row in rows
    ]
    report.tables["share flagged, of held-out images and of others"] = [
        _columns(row, "flagged") for row in rows
    ]
    ours = next(row for row in rows if row["score"] == OURS)
    asked = NO_CLASS if NO_CLASS in ours["auroc"] else next(iter(ours["auroc"]))
    report.ratios = [
        Ratio(f"area, {ours['known']} against {asked}", ours["auroc"][asked], _TARGET),
        Ratio(
            "lowest area of ours, all sets",
            min(value for row in rows if row["score"] == OURS for value in _judged(row).values()),
        ),
    ]
    report.publish(arguments)
    return 0


def _judged(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the areas that are to be high: photos of known classes from elsewhere need not be."""
    return {other: area for other, area in row["auroc"].items() if other != ELSEWHERE}


def _columns(row: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {"known": row["known"], "score": row["score"], **row[what]}


def _read(
    arguments: argparse.Namespace, scratch: Path
) -> tuple[dict[str, ImageFiles], dict[str, Tensor]]:
    """Return the sets that have classes, and what the backbone makes of all sets."""
    if arguments.mode == "smoke":
        backbone, size = new_backbone("tinynet", None), 32
        known = {"caltech": generate_images(scratch / "a", 60)}
        sets = known | {NO_CLASS: generate_images(scratch / "b", 20, n_classes=5)}
    else:
        data, size = need_data(arguments), 224
        state = read_state(arguments.backbone, find_weights_folder(arguments, data))
        backbone, known = new_backbone(arguments.backbone, state), image_sets(data)
        sets = known | {NO_CLASS: background(data)}
        outside = data / "external" / "caltech6"
        if outside.is_dir():
            sets |= {ELSEWHERE: class_folders(outside, ELSEWHERE)}
    return known, {name: pooled_features(one, backbone, size) for name, one in sets.items()}


def _measure(
    name: str, known: Mapping[str, ImageFiles], features: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Judge every score where one set is known and all others are not."""
    x, labels = features[name], known[name].labels
    n_classes = len(known[name].classes)
    test = split_folds(np.arange(len(labels)), labels, N_FOLDS, 7)[0]
    rows = np.setdiff1d(np.arange(len(labels)), test)
    others = {other: made for other, made in features.items() if other != name}
    if name != "caltech":
        others.pop(ELSEWHERE, None)
    asked = {"held-out": x[test], **others}
    found: dict[str, dict[str, list[Tensor]]] = {}
    for held_out in split_folds(rows, labels, N_FOLDS, 0):
        train = np.setdiff1d(rows, held_out)
        y = torch.from_numpy(labels[train])
        fold = Fold(x[train], y, n_classes, fit_head(x[train], y, n_classes))
        for score, judge in fit_scores(fold, x[held_out]).items():
            kept = found.setdefault(score, {})
            kept.setdefault("out-of-fold", []).append(judge(x[held_out]))
            for other, made in asked.items():
                kept.setdefault(other, []).append(judge(made))
    judged = []
    for score, kept in found.items():
        limit = torch.quantile(torch.cat(kept.pop("out-of-fold")).float(), 0.95)
        mean = {other: torch.stack(values).mean(0) for other, values in kept.items()}
        inside = mean["held-out"]
        judged.append(
            {
                "known": name,
                "score": score,
                "auroc": {o: _area(inside, mean[o]) for o in others},
                "flagged": {o: float((mean[o] > limit).float().mean()) for o in mean},
            }
        )
    return judged


def fit_scores(fold: Fold, held_out: Tensor) -> dict[str, Score]:
    """Fit every score on a fold's training images; ours is put on its scale by the held-out."""
    subspace = fit_subspace(fold.features)
    ood_score = fit_ood_scorer(
        [subspace], residual(held_out, subspace), energy(fold.logits(held_out))
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
    """Fit the distance to the nearest class mean, and the same less that to the overall mean."""
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
    """Invert a covariance that is shrunk half way to a multiple of the identity."""
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
