"""Measure the calibration of an ensemble by one temperature, fitted on out-of-fold logits.

    python -m benchmarks.models.calibration

Half of each photo set trains five folds, the other half is the test set. A fold's model is the
linear probe, or a head trained by gradient descent until it is overconfident. The temperature is
fitted on out-of-fold logits, applied where it lowers their cross-fitted log loss, and evaluated on
the test set, for the mean of the members' probabilities, which is what is deployed, and for the
softmax of their mean logits. For comparison: scaling always, and the best possible temperature,
fitted on the test set itself.
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
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.reporting import Ratio, Report, command_line
from benchmarks.harness.workbench import (
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    pooled_features,
    read_state,
)
from search.evaluation.calibration import measure_calibration, scale_temperature
from search.pipeline.retraining.kfold import split_folds
from trainables.models.ensemble import mean_probabilities
from trainables.models.linear_probe import fit_head

N_FOLDS = 5
_STEPS, _LR = 300, 0.01
_TARGET = 0.02


def main() -> int:
    """Run the benchmark."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--backbone", default="mobilenet_v2", help="default: %(default)s")
    arguments = parser.parse_args()
    report = Report("calibration", "Expected calibration error and log loss on test sets.")
    seeds = {"smoke": 1, "quick": 2, "full": 5}[arguments.mode]
    with tempfile.TemporaryDirectory() as scratch:
        sets = _read(arguments, Path(scratch))
    rows = []
    for name, (x, labels) in sets.items():
        for head, fit in (("probe", _probe), ("overtrained", _overtrain)):
            rows.append(_measure(name, head, fit, x, labels, seeds))
    report.tables["mean over seeds"] = rows
    after, always, before = (
        sum(row[f"log loss {when}"] for row in rows) for when in ("after", "always", "before")
    )
    report.ratios = [
        Ratio("log loss, after over before, all sets", after / before, 1.0, False),
        Ratio("log loss, scaled always over before, all sets", always / before),
    ]
    report.ratios += [
        Ratio(
            f"ECE after, {row['set']}, {row['head']}, n = {row['n']}",
            row["ECE after"],
            _TARGET,
            False,
        )
        for row in rows
        if row["n"] >= 300
    ]
    report.notes.append(f"mean over {seeds} seeds, each with its own split")
    report.publish(arguments)
    return 0


def _read(arguments: argparse.Namespace, scratch: Path) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Compute each set's features; return them with the labels."""
    if arguments.mode == "smoke":
        backbone, size = new_backbone("tinynet", None), 32
        sets = {"generated": generate_images(scratch, 60)}
    else:
        data, size = need_data(arguments), 224
        state = read_state(arguments.backbone, find_weights_folder(arguments, data))
        backbone, sets = new_backbone(arguments.backbone, state), image_sets(data)
    return {name: (pooled_features(one, backbone, size), one.labels) for name, one in sets.items()}


def _measure(
    name: str, head: str, fit: Any, x: Tensor, labels: np.ndarray, seeds: int
) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    n_classes = int(labels.max()) + 1
    for seed in range(seeds):
        rows, test = split_folds(np.arange(len(labels)), labels, 2, seed)
        out_of_fold, members = [], []
        for fold in split_folds(rows, labels, N_FOLDS, seed):
            train = np.setdiff1d(rows, fold)
            weights = fit(x[train], torch.from_numpy(labels[train]), n_classes)
            out_of_fold.append(_logits(x[fold], weights))
            members.append(_logits(x[test], weights))
        scaling = scale_temperature(
            [one.numpy() for one in out_of_fold],
            [labels[fold] for fold in split_folds(rows, labels, N_FOLDS, seed)],
        )
        logits = torch.stack(members)
        mean_logits = logits.mean(0, keepdim=True)
        probabilities = {
            "before": mean_probabilities(logits, 1.0),
            "after": mean_probabilities(logits, scaling.temperature),
            "always": mean_probabilities(logits, scaling.fitted_temperature),
            "of mean logits": mean_probabilities(mean_logits, scaling.temperature),
            "at best": mean_probabilities(logits, _best_temperature(logits, labels[test])),
        }
        found.setdefault("applied", []).append(float(scaling.applied))
        found.setdefault("temperature", []).append(scaling.fitted_temperature)
        for when, values in probabilities.items():
            scores = measure_calibration(labels[test], values.numpy())
            found.setdefault(f"ECE {when}", []).append(scores.ece)
            found.setdefault(f"log loss {when}", []).append(scores.log_loss)
    means = {key: statistics.mean(values) for key, values in found.items()}
    return {"set": name, "head": head, "n": len(test), **dict(sorted(means.items()))}


def _best_temperature(logits: Tensor, labels: np.ndarray) -> float:
    """Find the temperature with the lowest log loss of the mean probabilities, by grid search."""
    tried = np.geomspace(0.1, 10, 80)
    losses = [
        measure_calibration(labels, mean_probabilities(logits, float(t)).numpy()).log_loss
        for t in tried
    ]
    return float(tried[int(np.argmin(losses))])


def _logits(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return x @ weights["weight"].T + weights["bias"]


def _probe(x: Tensor, labels: Tensor, n_classes: int) -> dict[str, Tensor]:
    return fit_head(x, labels, n_classes)


def _overtrain(x: Tensor, labels: Tensor, n_classes: int) -> dict[str, Tensor]:
    """Train a linear head without regularization, far beyond zero training errors."""
    weight = torch.zeros(n_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_LR)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(x @ weight.T + bias, labels).backward()
        optimizer.step()
    return {"weight": weight.detach(), "bias": bias.detach()}


if __name__ == "__main__":
    sys.exit(main())
