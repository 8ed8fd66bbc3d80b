"""The ladder of the cats-and-dogs study: what each idea adds to a plain network.

A plain CNN, then dropout, then augmentation, then transfer from a pretrained network; each trained
to full length on the same split. It takes no part in the search.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from search.cluster.nodes import EVERYWHERE
from search.cluster.resources import Capacity
from search.console.progress import Progress
from search.pipeline.prepare import Material
from search.runs.run_folder import RunFolder
from search.tuning.throughput import measure_paces
from search.tuning.tune import CPUS_A_TRIAL
from spaces.base import Space, TrialConfig
from trainables.compute import compute_with
from trainables.trainer import EpochResult
from trainables.trial import Bench, create_trainer, threads_of_worker

_COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


@dataclass(frozen=True)
class Rung:
    """One rung: what it is called and how it is trained."""

    name: str
    config: TrialConfig


@dataclass(frozen=True)
class Climbed:
    """A rung that was trained to full length, with its epochs."""

    rung: Rung
    curve: tuple[EpochResult, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what the summary keeps; accuracies are of the last epoch but for the best."""
        last = self.curve[-1]
        best = max(self.curve, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
        return {
            "name": self.rung.name,
            "config": asdict(self.rung.config),
            "epochs": len(self.curve),
            "train_accuracy": last.train_accuracy,
            "val_accuracy": last.val_accuracy,
            "best_val_accuracy": best.val_accuracy,
            "best_epoch": best.epoch,
            "seconds": sum(epoch.seconds for epoch in self.curve),
        }


def rungs_of(space: Space, pretrained: str | None) -> list[Rung]:
    """Return the rungs, lowest first.

    Args:
        space: Its constants hold on every rung, but for what makes the rung.
        pretrained: The backbone of the last rung; None leaves that out.
    """
    plain = {**space.constants, "backbone": "cnn", "lr": 1e-3, "freeze_depth": 0}
    plain |= {"hidden_units": 0, "dropout": 0.0, "augment": 0.0}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("plain CNN", {}),
        ("+ dropout", {"dropout": 0.5}),
        ("+ augmentation", {"augment": 0.4}),
    ]
    if pretrained is not None:
        transfer = {"backbone": pretrained, "freeze_depth": 5, "dropout": 0.2, "augment": 0.2}
        steps.append((f"transfer from {pretrained}", transfer))
    rungs = []
    for name, step in steps:
        plain |= step
        rungs.append(Rung(name, TrialConfig.from_params(plain)))
    return rungs


def expected_seconds(material: Material, shares: Mapping[str, float]) -> float:
    """Return how long the climb will take, by the pace of the rungs that train a whole CNN.

    Args:
        material: What the run works on.
        shares: By backbone, the share of a GPU that a training takes.
    """
    share, rows = _share("cnn", shares), material.rows("train")
    pace = measure_paces(material.bench, rows, {"cnn": share})["cnn"]
    n_rungs = len(rungs_of(material.space, None))
    rounds = math.ceil(n_rungs / Capacity(CPUS_A_TRIAL, [share])())
    return rounds * material.space.epochs * len(rows) * sum(pace)


def climb(material: Material, folder: RunFolder, progress: Progress) -> None:
    """Train every rung that an earlier session did not, and write what they came to.

    Writes `ladder/`, `ladder.csv` and the summary's section `ladder`.
    """
    space, bench = material.space, material.bench
    probed = folder.summary.get("probe", {})
    pretrained = next((name for name in [*probed, *bench.weights] if name in bench.weights), None)
    rungs = rungs_of(space, pretrained)
    progress.begin("ladder", len(rungs), "rungs")
    store = folder.path / "ladder"
    store.mkdir(exist_ok=True)
    done = {i: made for i, rung in enumerate(rungs) if (made := _load(store, i, rung, bench))}
    shares = folder.summary["gpu_shares"]
    rows = material.rows("train"), material.rows("val")
    pending = {
        _climb_rung.options(
            scheduling_strategy=EVERYWHERE,
            num_cpus=CPUS_A_TRIAL,
            num_gpus=_share(rung.config.backbone, shares),
        ).remote(bench, rung.config, *rows): index
        for index, rung in enumerate(rungs)
        if index not in done
    }
    while pending:
        progress.advance(len(done), len(rungs))
        (ready,), _ = ray.wait(list(pending))
        index = pending.pop(ready)
        made = done[index] = Climbed(rungs[index], ray.get(ready))
        _save(store, index, made)
        last = made.curve[-1]
        progress.say(
            f"{made.rung.name}: {last.train_accuracy:.4f} in training,"
            f" {last.val_accuracy:.4f} in validation"
        )
    climbed = [done[index] for index in range(len(rungs))]
    _write_table(folder.path / "ladder.csv", climbed)
    folder.note("ladder", [made.as_json() for made in climbed])


def _share(backbone: str, shares: Mapping[str, float]) -> float:
    """Return the share of a GPU for a backbone, which the search may not have had."""
    return shares.get(backbone, max(shares.values(), default=0.0))


def _load(store: Path, index: int, rung: Rung, bench: Bench) -> Climbed | None:
    """Read a rung of an earlier session; None where it was not finished, or is another now."""
    try:
        kept = json.loads((store / f"{index}.json").read_text(encoding="utf-8"))
        curve = tuple(EpochResult(**epoch) for epoch in kept["curve"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = kept["config"] == asdict(rung.config) and len(curve) == bench.epochs
    return Climbed(rung, curve) if same else None


def _save(store: Path, index: int, made: Climbed) -> None:
    kept = {"config": asdict(made.rung.config), "curve": [asdict(epoch) for epoch in made.curve]}
    partial = store / f"{index}.json.partial"
    partial.write_text(json.dumps(kept), encoding="utf-8")
    partial.replace(store / f"{index}.json")


def _write_table(path: Path, climbed: Sequence[Climbed]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rung", "name", "epoch", *_COLUMNS])
        for index, made in enumerate(climbed, start=1):
            for epoch in made.curve:
                values = [round(getattr(epoch, name), 6) for name in _COLUMNS]
                writer.writerow([index, made.rung.name, epoch.epoch, *values])


@ray.remote(max_retries=3)
def _climb_rung(
    bench: Bench, config: TrialConfig, train_rows: np.ndarray, val_rows: np.ndarray
) -> tuple[EpochResult, ...]:
    compute_with(threads_of_worker())
    trainer = create_trainer(
        bench,
        config,
        torch.from_numpy(train_rows.copy()),
        torch.from_numpy(val_rows.copy()),
        seed=bench.seed * 1_000_003 + 700_001,
        epochs=bench.epochs,
    )
    return tuple(trainer.run_epoch() for _ in range(bench.epochs))
