"""Compare parts of a fine-tuning, one by one, with a base.

    python -m benchmarks.models.fine_tuning [--quick] [--only NAME ...] [--minutes M]

The base trains the last two stages of a backbone from the linear probe's head: AdamW at 3e-4,
cosine with warm-up, 8 epochs, batches of 32, augmentation 0.3, dropout 0.2, weight decay 1e-4,
BatchNorm statistics trained. Every part changes one thing, or two where its name has a "+". A cell
is one training: a photo set, a backbone, a seed and a part. A seed splits the set's training folder
into training and validation images, 67 to 33; folders of test images are not read. Quoted is the
difference in validation accuracy and log loss after the last epoch, part minus base, paired by
cell, with a bootstrap interval over sets and, within them, cells.

It runs for hours. Each cell is appended to a file of JSON lines and never trained again; processes
with other sets may append to the same file. `--minutes 0` reports what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from time import monotonic, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.reporting import (
    ROOT,
    Ratio,
    Report,
    bootstrap_interval,
    command_line,
    log_progress,
    stop,
)
from benchmarks.harness.training_parts import BASE, PARTS, Part, PartTrainer
from benchmarks.harness.workbench import (
    ImageFiles,
    build_caches,
    choose_stratified,
    decode_images,
    find_weights_folder,
    generate_images,
    image_sets,
    need_data,
    new_backbone,
    read_state,
)
from trainables.compute import configure_cpu
from trainables.models.linear_probe import fit_head

N_VIEWS = 8
VAL_FRACTION = 0.33


@dataclass(frozen=True)
class Plan:
    """Which cells are measured.

    Attributes:
        sets: The photo sets.
        backbones: Their names.
        seeds: Of the split and the training.
        parts: By name, the base among them.
        image_size: Side in pixels.
        weights: Folder of the backbones' weights.
    """

    sets: Mapping[str, ImageFiles]
    backbones: Sequence[str]
    seeds: Sequence[int]
    parts: Mapping[str, Part]
    image_size: int = 224
    weights: Path | None = None


class Key(NamedTuple):
    """Names a cell."""

    set: str
    backbone: str
    seed: int
    part: str


@dataclass(frozen=True)
class Cell:
    """The result of one training, on its validation images."""

    set: str
    backbone: str
    seed: int
    part: str
    accuracy: float
    log_loss: float
    cpu_seconds: float
    n_train: int
    n_val: int

    @property
    def key(self) -> Key:
        """Return what names the cell."""
        return Key(self.set, self.backbone, self.seed, self.part)


def main() -> int:
    """Run the benchmark."""
    arguments = _parse()
    configure_cpu(1)  # so that results do not depend on the cores, and processes run side by side
    with tempfile.TemporaryDirectory() as scratch:
        plan = _plan(arguments, Path(scratch))
        file = Path(scratch) / "cells.jsonl" if arguments.mode == "smoke" else arguments.cells
        deadline = monotonic() + 60 * arguments.minutes
        for cell in measure(plan, read_cells(file).keys(), deadline):
            append_cell(file, cell)
            log_progress(f"{' '.join(map(str, cell.key))}: {cell.accuracy:.3f} {cell.log_loss:.3f}")
        wanted = [cell for key, cell in read_cells(file).items() if _is_planned(plan, key)]
    report(plan, wanted).publish(arguments)
    return 0


# --- what is measured --------------------------------------------------------------------------


def _parse() -> argparse.Namespace:
    parser = command_line(__doc__ or "", data=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts, sets, models")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="begin no training later (default: no limit)"
    )
    parser.add_argument(
        "--cells",
        type=Path,
        default=ROOT / "results" / "fine_tuning.jsonl",
        help="file of what was measured, which is continued (default: %(default)s)",
    )
    return parser.parse_args()


def _plan(arguments: argparse.Namespace, scratch: Path) -> Plan:
    """Return the cells of a mode, without those that --only leaves out."""
    if arguments.mode == "smoke":
        short = {name: replace(part, epochs=min(part.epochs, 1)) for name, part in PARTS.items()}
        return Plan({"generated": generate_images(scratch, 36)}, ["tinynet"], [0, 1], short, 64)
    data = need_data(arguments)
    weights = find_weights_folder(arguments, data)
    sets = image_sets(data)
    plan = Plan(sets, ["mobilenet_v2", "timm/tf_efficientnet_lite0"], arguments.seeds, PARTS)
    if arguments.mode == "quick":
        parts = {name: PARTS[name] for name in (BASE, "frozen", "mixup")}
        plan = Plan({"tools": sets["tools"]}, ["mobilenet_v2"], [0], parts)
    known = {*plan.sets, *plan.backbones, *plan.parts}
    if unknown := [name for name in arguments.only if name not in known]:
        stop(f"--only has {', '.join(unknown)}, but there are only {', '.join(sorted(known))}")
    parts = {BASE, *_chosen(plan.parts, arguments.only)}
    return replace(
        plan,
        sets={name: plan.sets[name] for name in _chosen(plan.sets, arguments.only)},
        backbones=_chosen(plan.backbones, arguments.only),
        parts={name: part for name, part in plan.parts.items() if name in parts},
        weights=weights,
    )


def _chosen(names: Iterable[str], only: Sequence[str]) -> list[str]:
    """Return the names that --only has; all, if it has none of them."""
    names = list(names)
    return [name for name in names if name in only] or names


def _is_planned(plan: Plan, key: Key) -> bool:
    return (
        key.set in plan.sets
        and key.backbone in plan.backbones
        and key.seed in plan.seeds
        and key.part in plan.parts
    )


def read_cells(file: Path) -> dict[Key, Cell]:
    """Read the cells that were measured; none where there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    cells = [Cell(**json.loads(line)) for line in lines]
    return {cell.key: cell for cell in cells}


def append_cell(file: Path, cell: Cell) -> None:
    """Append a cell as one line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(cell)) + "\n")


# --- training ----------------------------------------------------------------------------------


def measure(plan: Plan, known: Iterable[Key], deadline: float) -> Iterator[Cell]:
    """Train the cells that are not known yet, until the deadline of `time.monotonic`."""
    known = set(known)
    for name in plan.sets:
        for backbone in plan.backbones:
            keys = [Key(name, backbone, seed, part) for seed in plan.seeds for part in plan.parts]
            missing = [key for key in keys if key not in known]
            if missing and monotonic() < deadline:
                yield from _measure_set(plan, missing, deadline)


def _measure_set(plan: Plan, keys: Sequence[Key], deadline: float) -> Iterator[Cell]:
    """Train cells of one photo set and backbone, in the order of their seeds."""
    name = keys[0].backbone
    state = read_state(name, plan.weights)
    if state is None:
        stop(f"there are no weights of {name}; give the folder with --weights")
    images = decode_images(plan.sets[keys[0].set], plan.image_size)
    labels, every = images.labels, torch.arange(len(images.labels))
    backbone = new_backbone(name, state)
    depths = {key.part: plan.parts[key.part].config(name).freeze_depth for key in keys}
    outputs = sorted({5, *depths.values()} - {0})
    caches = build_caches(backbone, images, every, outputs, N_VIEWS)
    log_progress(f"{keys[0].set}, {name}: {N_VIEWS} views of {len(labels)} images")
    for key in keys:
        if monotonic() >= deadline:
            return
        train, val = split(labels, key.seed)
        head = fit_head(caches[5].clean(train).float(), labels[train], images.n_classes)
        cache = caches.get(depths[key.part])
        started = process_time()
        trainer = PartTrainer(
            plan.parts[key.part],
            copy.deepcopy(backbone),
            images,
            train,
            seed=key.seed,
            cache=cache,
            probe_head=head,
        )
        trainer.run()
        logits = trainer.predict_logits(val)
        yield Cell(
            *key,
            accuracy=float((logits.argmax(1) == labels[val]).float().mean()),
            log_loss=float(F.cross_entropy(logits, labels[val])),
            cpu_seconds=process_time() - started,
            n_train=len(train),
            n_val=len(val),
        )


def split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Split images into training and validation images, stratified by class.

    Args:
        labels: int64 [n].
        seed: Of the draw.

    Returns:
        Their indices, int64, ascending.
    """
    n_val = round(VAL_FRACTION * len(labels))
    is_val = torch.zeros(len(labels), dtype=torch.bool)
    is_val[torch.from_numpy(choose_stratified(labels.numpy(), n_val, seed))] = True
    return (~is_val).nonzero().squeeze(1), is_val.nonzero().squeeze(1)


# --- the report --------------------------------------------------------------------------------


def report(plan: Plan, cells: Sequence[Cell]) -> Report:
    """Compare each part with the base."""
    result = Report("fine_tuning", "Fine-tuning: each part minus the base.")
    bases = {cell.key: cell for cell in cells if cell.part == BASE}
    pairs = {
        name: [(c, bases[b]) for c in cells if c.part == name and (b := _base(c)) in bases]
        for name in plan.parts
        if name != BASE
    }
    result.tables["part minus base"] = [_row(name, found) for name, found in pairs.items() if found]
    result.tables["by set"] = [
        row for photo_set in plan.sets for row in _rows_of_set(photo_set, cells)
    ]
    for row in result.tables["part minus base"]:
        name = row["part"]
        result.ratios.append(Ratio(f"{name}: accuracy minus the base's, points", row["points"]))
        result.ratios.append(Ratio(f"{name}: log loss minus the base's", row["log loss"]))
    n_all = len(plan.sets) * len(plan.backbones) * len(plan.seeds) * len(plan.parts)
    hours = sum(cell.cpu_seconds for cell in cells) / 3600
    result.notes.append(
        f"{len(cells)} of {n_all} cells are measured: {hours:.2f} hours of one core"
    )
    result.notes.append("intervals: 95%, bootstrap over sets and their cells; none of one cell")
    result.extra["cells"] = [asdict(cell) for cell in cells]
    return result


def _base(cell: Cell) -> Key:
    return cell.key._replace(part=BASE)


def _row(name: str, pairs: Sequence[tuple[Cell, Cell]]) -> dict[str, Any]:
    points: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for part, base in pairs:
        points.setdefault(part.set, []).append(100 * (part.accuracy - base.accuracy))
        losses.setdefault(part.set, []).append(part.log_loss - base.log_loss)
    accuracy = bootstrap_interval(list(points.values()))
    loss = bootstrap_interval(list(losses.values()))
    return {
        "part": name,
        "sets": len(points),
        "cells": len(pairs),
        **dict(zip(("points", "points low", "points high"), accuracy, strict=True)),
        **dict(zip(("log loss", "log loss low", "log loss high"), loss, strict=True)),
        "time over base": fmean(p.cpu_seconds / b.cpu_seconds for p, b in pairs),
    }


def _rows_of_set(name: str, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yield a row per backbone and part, means over the seeds."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.set == name:
            groups.setdefault((cell.backbone, cell.part), []).append(cell)
    for (backbone, part), found in groups.items():
        yield {
            "set": name,
            "backbone": backbone,
            "part": part,
            "seeds": len(found),
            "accuracy": fmean(cell.accuracy for cell in found),
            "log loss": fmean(cell.log_loss for cell in found),
        }


if __name__ == "__main__":
    sys.exit(main())
