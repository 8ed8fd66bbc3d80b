"""Should BatchNorm layers go by each batch, or keep their pretrained statistics, in fine-tuning?

    python benchmarks/batch_norm.py [--quick] [--data DIR]

Five folds of each set, fine-tuned from the probe's head: photos with MobileNetV2 pretrained on
ImageNet, handwritten digits with tinynet pretrained on glyphs. Both sides have the same folds,
order of pictures and augmentation. Differences are of the share of pictures that the folds have
right, each picture once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.outside import array_set
from benchmarks.reporting import ROOT, Ratio, Report, command_line, say, stop
from benchmarks.workbench import (
    build_bank,
    find_weights_folder,
    generate_pictures,
    need_data,
    new_backbone,
    pack_pictures,
    picture_sets,
    read_state,
)
from search.comparison import compare
from search.folds import split_folds
from spaces.base import TrialConfig
from spaces.sources import digits
from trainables.inputs import PictureSet
from trainables.model import Weights
from trainables.probe import fit_head
from trainables.training import Trainer

N_VIEWS = 8
VIEWS = (0, 1, 2)
"""Those of magnitudes up to 0.29, which is what `augment` 0.3 draws from."""
SIDES = ("trained", "frozen")


@dataclass(frozen=True)
class Case:
    """What is fine-tuned, how, on what.

    Attributes:
        name: Of the set.
        pictures: The set.
        state: Pretrained weights.
        config: Of both sides.
        epochs: Of every training.
    """

    name: str
    pictures: PictureSet
    state: Weights | None
    config: TrialConfig
    epochs: int


def main() -> int:
    """Measure, print a table, and keep it as JSON."""
    arguments = command_line(__doc__ or "", data=True).parse_args()
    report = Report("batch_norm", "BatchNorm statistics of each batch against pretrained ones.")
    with tempfile.TemporaryDirectory() as scratch:
        cases = _cases(arguments, Path(scratch))
    rows = []
    for case in cases:
        predicted = _folds(case)
        labels = case.pictures.labels.numpy()
        found = compare(labels, predicted["frozen"], predicted["trained"])
        low, high = found.difference_ci95
        rows.append(
            {
                "set": case.name,
                "n": found.n,
                "backbone": case.config.backbone,
                "depth": case.config.freeze_depth,
                "lr": case.config.lr,
                "probe": float((predicted["probe"] == labels).mean()),
                "trained": found.baseline_accuracy,
                "frozen": found.accuracy,
                "low": low,
                "high": high,
            }
        )
        report.ratios.append(Ratio(f"{case.name}: gained by frozen", found.difference))
    report.tables["accuracy in five folds, and the 95 % interval of the difference"] = rows
    report.publish(arguments)
    return 0


def _cases(arguments: argparse.Namespace, scratch: Path) -> list[Case]:
    photo = TrialConfig("mobilenet_v2", 1e-4, 4, augment=0.3, scheduler="cosine")
    glyph = TrialConfig("tinynet", 1e-3, 3, augment=0.3, scheduler="cosine", batch_size=64)
    if arguments.mode == "smoke":
        generated = pack_pictures(generate_pictures(scratch, 24), 64)
        return [Case("generated", generated, None, photo, 1)]
    data = need_data(arguments)
    state = read_state("mobilenet_v2", find_weights_folder(arguments, data))
    if state is None:
        stop("there are no weights of mobilenet_v2; give the folder with --weights")
    sets = picture_sets(data)
    names = ("tools",) if arguments.mode == "quick" else ("tools", "products")
    cases = [Case(name, pack_pictures(sets[name], 224), state, photo, 8) for name in names]
    tinynet = read_state("tinynet", ROOT / "trainables" / "weights")
    drawn = array_set(digits(), 32, flip=False)
    return [*cases, Case("digits", drawn, tinynet, glyph, 8)]


def _folds(case: Case) -> dict[str, np.ndarray]:
    """Return what the folds predict, by side and by the plain probe: int64 [n]."""
    pictures, depth = case.pictures, case.config.freeze_depth
    rows = torch.arange(len(pictures.labels))
    network = new_backbone(case.config.backbone, case.state)
    pooled = build_bank(network, pictures, rows, boundary=5, n_views=1).clean(rows).float()
    bank = build_bank(network, pictures, rows, depth, N_VIEWS, VIEWS)
    made = {side: np.empty(len(rows), np.int64) for side in ("probe", *SIDES)}
    every = np.arange(len(rows))
    for fold, held_out in enumerate(split_folds(every, pictures.labels.numpy(), 5, seed=0)):
        train = torch.from_numpy(np.setdiff1d(every, held_out))
        head = fit_head(pooled[train], pictures.labels[train], pictures.n_classes)
        logits = pooled[held_out] @ head["weight"].T + head["bias"]
        made["probe"][held_out] = logits.argmax(1).numpy()
        for side in SIDES:
            trainer = Trainer(
                replace(case.config, batch_norm=side),
                new_backbone(case.config.backbone, case.state),
                pictures,
                train,
                train[:0],
                epochs=case.epochs,
                seed=fold,
                bank=bank,
                head_start=head,
            )
            for _ in range(case.epochs):
                trainer.run_epoch()
            predicted = trainer.predict_logits(torch.from_numpy(held_out)).argmax(1)
            made[side][held_out] = predicted.numpy()
        say(f"{case.name}, fold {fold + 1}")
    return made


if __name__ == "__main__":
    sys.exit(main())
