"""Measure recall and precision of label issues on flipped labels, by our and cleanlab's rules.

    python -m benchmarks.models.label_issues

Labels of real images are flipped at random, each to another class drawn uniformly. 5-fold
cross-validation of the linear probe gives out-of-fold probabilities, scaled by the temperature that
a run would fit. The labels that we flag, and those that cleanlab flags by each of its rules, are
compared with the flipped ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from scipy.special import softmax

from benchmarks.harness.reporting import Ratio, Report, command_line
from benchmarks.harness.workbench import (
    ImageFiles,
    choose_stratified,
    find_data,
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    pooled_features,
    read_state,
)
from search.evaluation.calibration import fit_temperature
from search.evaluation.label_issues import find_label_issues as find_ours
from search.pipeline.retraining.kfold import split_folds
from trainables.models.backbones import Backbone
from trainables.models.linear_probe import fit_head

FRACTIONS = (0.02, 0.05, 0.10)
_OURS = "ours"
_CLEANLABS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "low_normalized_margin",
    "low_self_confidence",
    "predicted_neq_given",
)
N_FOLDS = 5
_TARGET_RECALL, _TARGET_PRECISION = 0.90, 0.75  # on Caltech with 5% flipped


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--backbone", default="mobilenet_v2", help="default: %(default)s")
    arguments = parser.parse_args()
    report = Report(
        "label_issues",
        "Recall: fraction of the flipped labels that are flagged. Precision: fraction of the"
        " flagged labels that were flipped.",
    )
    seeds = {"smoke": 1, "quick": 3, "full": 5}[arguments.mode]
    rules = (_OURS, *(_CLEANLABS if arguments.mode == "full" else ()))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        sets, backbone, size = _choose_work(arguments, Path(scratch))
        of_set = {name: pooled_features(one, backbone, size) for name, one in sets.items()}
    for name, images in sets.items():
        features = of_set[name]
        for fraction in FRACTIONS:
            found = [_measure(features, images, fraction, seed, rules) for seed in range(seeds)]
            rows += [_row(name, fraction, rule, [one[rule] for one in found]) for rule in rules]
    chosen = [row for row in rows if row["rule"] == _OURS]
    others = [row for row in rows if row["rule"] != _OURS]
    report.tables["ours"] = chosen
    if others:
        report.tables["cleanlab's rules"] = others
    row = next((r for r in chosen if (r["set"], r["flipped"]) == ("caltech", 0.05)), chosen[0])
    report.ratios = [
        Ratio(f"recall, {row['set']}, 5% flipped", row["recall"], _TARGET_RECALL),
        Ratio(f"precision, {row['set']}, 5% flipped", row["precision"], _TARGET_PRECISION),
    ]
    report.notes.append(
        f"mean and standard deviation over {seeds} seeds; labels that were wrong before"
        " count as false alarms"
    )
    report.publish(arguments)
    return 0


def _choose_work(
    arguments: argparse.Namespace, scratch: Path
) -> tuple[dict[str, ImageFiles], Backbone, int]:
    """Return the image sets, the backbone and its image size in pixels."""
    if arguments.mode == "smoke":
        return {"generated": generate_images(scratch, 90)}, new_backbone("tinynet", None), 32
    data = need_data(arguments)
    state = read_state(arguments.backbone, find_weights_folder(arguments, find_data(arguments)))
    return image_sets(data), new_backbone(arguments.backbone, state), 224


def _measure(
    features: torch.Tensor,
    images: ImageFiles,
    fraction: float,
    seed: int,
    rules: tuple[str, ...],
) -> dict[str, tuple[float, float, int]]:
    """Flip a fraction of the labels; return by rule recall, precision and the number flagged."""
    rng = np.random.default_rng(seed)
    labels, n_classes = images.labels, len(images.classes)
    flipped = choose_stratified(labels, max(1, round(fraction * len(labels))), seed)
    given = labels.copy()
    given[flipped] = (labels[flipped] + rng.integers(1, n_classes, len(flipped))) % n_classes
    probabilities = _out_of_fold(features, given, n_classes, seed)
    made = {}
    for rule in rules:
        if rule == _OURS:
            found = find_ours(given, probabilities)
        else:
            found = find_label_issues(
                given,
                probabilities,
                filter_by=rule,
                return_indices_ranked_by="self_confidence",
                n_jobs=1,
            )
        hits = int(np.isin(found, flipped).sum())
        made[rule] = (hits / len(flipped), hits / max(1, len(found)), len(found))
    return made


def _out_of_fold(
    features: torch.Tensor, labels: np.ndarray, n_classes: int, seed: int
) -> np.ndarray:
    rows = np.arange(len(labels))
    logits = np.empty((len(labels), n_classes), np.float32)
    for fold in split_folds(rows, labels, N_FOLDS, seed):
        train = np.setdiff1d(rows, fold)
        head = fit_head(features[train], torch.from_numpy(labels[train]), n_classes)
        logits[fold] = (features[fold] @ head["weight"].T + head["bias"]).numpy()
    return np.asarray(softmax(logits / fit_temperature(logits, labels), axis=1))


def _row(
    name: str, fraction: float, rule: str, found: list[tuple[float, float, int]]
) -> dict[str, Any]:
    recalls, precisions, flagged = (list(values) for values in zip(*found, strict=True))

    def deviation(values: list[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    return {
        "set": name,
        "flipped": fraction,
        "rule": rule,
        "recall": statistics.mean(recalls),
        "± recall": deviation(recalls),
        "precision": statistics.mean(precisions),
        "± precision": deviation(precisions),
        "flagged": statistics.mean(flagged),
    }


if __name__ == "__main__":
    sys.exit(main())
