"""Measure what an ensemble of several backbones' linear probes gains over the best of them.

    python -m benchmarks.models.probe_ensembles [--sets flowers grocery] [--seeds 5]

Each set is divided at random into 70% and 30%, stratified. On the larger part each backbone's probe
is cross-validated, the best one and the probes of an ensemble are chosen as a run chooses them
(search/pipeline/backbones/probe_ensemble.py), and their heads are fitted; on the other part, which
chooses nothing, both are compared. Where no ensemble is chosen the gain is 0.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    bootstrap_interval,
    command_line,
    log_progress,
    stop,
)
from benchmarks.harness.workbench import (
    ImageFiles,
    choose_stratified,
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    pooled_features,
    read_state,
)
from search.evaluation.calibration import fit_temperature, log_losses
from search.pipeline.backbones.probe_ensemble import choose_probes
from search.pipeline.backbones.selection import RankedProbe
from search.pipeline.retraining.ensemble_selection import mix, select_weights
from spaces.portfolio import portfolio_backbones
from trainables.models.classifier import Weights
from trainables.models.linear_probe import fit_probe

_TRAIN_FRACTION = 0.7
_IMAGE_SIZE = 224


@dataclass(frozen=True)
class Division:
    """What one division of a set shows.

    Attributes:
        n_probes: Probes of the ensemble; 1 where none is chosen.
        n_correct, n_correct_best: Images of the other part that it and the best probe get right.
        log_loss, log_loss_best: Theirs, mean in nats.
        n: Images of the other part.
    """

    n_probes: int
    n_correct: int
    n_correct_best: int
    log_loss: float
    log_loss_best: float
    n: int

    @property
    def gain(self) -> float:
        """Accuracy of the ensemble minus that of the best probe."""
        return (self.n_correct - self.n_correct_best) / self.n


def main() -> None:
    """Run all sets and seeds."""
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these sets (default: all)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="divisions of each set")
    arguments = parser.parse_args()
    report = Report("probe_ensembles", "Linear probes of several backbones, together and alone.")
    rows, gains = [], []
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.mode == "smoke":
            sets = {"generated": generate_images(Path(scratch), 60)}
            states = {"tinynet": read_state("tinynet", None), "squeezenet1_1": None}
            image_size, n_seeds = 64, 2
        else:
            sets, states = _real_sets(arguments)
            image_size = _IMAGE_SIZE
            n_seeds = arguments.seeds if arguments.mode == "full" else 2
        for name, images in sets.items():
            features = {}
            for backbone, state in states.items():
                log_progress(f"{name}: features of {backbone}")
                network = new_backbone(backbone, state)
                features[backbone] = pooled_features(images, network, image_size)
            divided = [divide(features, images.labels, seed) for seed in range(n_seeds)]
            rows.append({"set": name, **summarize(divided)})
            gains.append([100 * one.gain for one in divided])
    report.tables["The other 30% of each set, means over the divisions"] = rows
    mean, low, high = bootstrap_interval(gains)
    report.ratios.append(Ratio("points of accuracy gained, mean of all sets", mean))
    report.ratios.append(Ratio("lower end of its 95% interval over sets and seeds", low, 0.0))
    report.ratios.append(Ratio("upper end", high))
    report.publish(arguments)


def _real_sets(
    arguments: argparse.Namespace,
) -> tuple[dict[str, ImageFiles], dict[str, Weights | None]]:
    """Return the sets that were asked for, and the weights of each backbone of the portfolio."""
    data = need_data(arguments)
    sets = image_sets(data)
    names = arguments.sets or list(sets)
    unknown = sorted(set(names) - set(sets))
    if unknown:
        stop(f"--sets: there is no {', '.join(unknown)}; choose from {', '.join(sets)}")
    if arguments.mode == "quick":
        names = ["tools"]
    folder = find_weights_folder(arguments, data)
    states = {name: read_state(name, folder) for name in portfolio_backbones(folder)}
    known: dict[str, Weights | None] = {
        name: state for name, state in states.items() if state is not None
    }
    return {name: sets[name] for name in names}, known


def divide(features: Mapping[str, torch.Tensor], labels: np.ndarray, seed: int) -> Division:
    """Choose on one part of a set, and compare on the other."""
    n_classes = int(labels.max()) + 1
    chosen = choose_stratified(labels, round(_TRAIN_FRACTION * len(labels)), seed)
    is_train = np.zeros(len(labels), bool)
    is_train[chosen] = True
    y, y_rest = labels[is_train], labels[~is_train]
    ranked, probabilities, of_rest = [], [], []
    for name, all_features in features.items():
        x, x_rest = all_features[is_train], all_features[~is_train]
        probe = fit_probe(x, torch.from_numpy(y), n_classes, seed)
        temperature = fit_temperature(probe.logits, y)
        logits = probe.logits.astype(np.float64) / temperature
        rest = x_rest.numpy() @ probe.head["weight"].numpy().T + probe.head["bias"].numpy()
        losses = log_losses(logits, y, 1.0)
        is_correct = logits.argmax(1) == y
        accuracy = float(is_correct.mean())
        ranked.append(
            RankedProbe(
                name, accuracy, accuracy, accuracy, logits, is_correct, losses, 0.0, 0.0, 0.0
            )
        )
        probabilities.append(softmax(logits, axis=1))
        of_rest.append(softmax(rest / temperature, axis=1))
    best = max(ranked, key=lambda one: (one.accuracy, -one.log_losses.mean()))
    together = choose_probes(ranked, best.name, "accuracy", y, np.arange(len(y)), seed)
    alone = of_rest[ranked.index(best)]
    if together:
        indices = [index for index, one in enumerate(ranked) if one.name in together]
        weights = select_weights(np.stack([probabilities[index] for index in indices]), y)
        predicted = mix([of_rest[index] for index in indices], weights)
    else:
        predicted = alone
    return Division(
        max(1, len(together)),
        int((predicted.argmax(1) == y_rest).sum()),
        int((alone.argmax(1) == y_rest).sum()),
        _log_loss(predicted, y_rest),
        _log_loss(alone, y_rest),
        len(y_rest),
    )


def summarize(divided: list[Division]) -> dict[str, object]:
    """Return means over the divisions of a set."""
    return {
        "images": divided[0].n,
        "probes": float(np.mean([one.n_probes for one in divided])),
        "best alone": float(np.mean([one.n_correct_best / one.n for one in divided])),
        "gain/points": float(np.mean([100 * one.gain for one in divided])),
        "log loss, best": float(np.mean([one.log_loss_best for one in divided])),
        "log loss": float(np.mean([one.log_loss for one in divided])),
    }


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())


if __name__ == "__main__":
    main()
