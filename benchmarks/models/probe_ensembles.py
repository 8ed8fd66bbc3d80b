"""Measure what an ensemble of several backbones' linear probes gains over the best of them.

    python -m benchmarks.models.probe_ensembles [--sets flowers grocery] [--seeds 5]

Each set is divided at random into 70% and 30%, stratified. On the larger part each backbone's probe
is cross-validated, the best one and the probes of an ensemble are chosen as a run chooses them
(search/pipeline/backbones/probe_ensemble.py), and their heads are fitted; on the other part, which
chooses nothing, both are compared. Where no ensemble is chosen the gain is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from benchmarks.harness.reporting import (
    Ratio,
    Report,
    bootstrap_interval,
    command_line,
    log_progress,
)
from benchmarks.harness.workbench import (
    choose_stratified,
    find_weights_folder,
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
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    sets = image_sets(data)
    names = arguments.sets or list(sets)
    n_seeds = arguments.seeds
    if arguments.mode != "full":
        names, n_seeds = ["tools"], 2
    backbones = [b for b in portfolio_backbones(weights) if read_state(b, weights) is not None]
    rows, gains = [], []
    for name in names:
        images = sets[name]
        if arguments.mode == "smoke":
            images = images.take(choose_stratified(images.labels, 60, 0))
        features = {}
        for backbone in backbones:
            log_progress(f"{name}: features of {backbone}")
            network = new_backbone(backbone, read_state(backbone, weights))
            features[backbone] = pooled_features(images, network, _IMAGE_SIZE)
        divided = [divide(features, images.labels, seed) for seed in range(n_seeds)]
        rows.append({"set": name, **summarize(divided)})
        gains.append([100 * one.gain for one in divided])
    report.tables["The other 30% of each set, means over the divisions"] = rows
    mean, low, high = bootstrap_interval(gains)
    report.ratios.append(Ratio("points of accuracy gained, mean of all sets", mean))
    report.ratios.append(Ratio("lower end of its 95% interval over sets and seeds", low, 0.0))
    report.ratios.append(Ratio("upper end", high))
    report.publish(arguments)


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
