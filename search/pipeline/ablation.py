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
from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots
from search.console.progress import Progress
from search.pipeline.prepare import PreparedData
from search.runs.run_folder import RunFolder
from search.tuning.throughput import measure_throughput
from spaces.base import Space, TrialConfig
from trainables.compute import compute_with
from trainables.trial_result import EpochResult
from trainables.worker import TrainingContext, create_trainer, threads_of_worker

_COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


@dataclass(frozen=True)
class Rung:
    """One rung: what it is called and how it is trained."""

    name: str
    config: TrialConfig


@dataclass(frozen=True)
class AblationResult:
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


def ablation_steps(space: Space, pretrained: str | None) -> list[Rung]:
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


def expected_seconds(prepared: PreparedData, shares: Mapping[str, float]) -> float:
    """Return how long the climb will take, by the pace of the rungs that train a whole CNN.

    Args:
        prepared: What the run works on.
        shares: By backbone, the share of a GPU that a training takes.
    """
    share, rows = _share("cnn", shares), prepared.rows("train")
    pace = measure_throughput(prepared.context, rows, {"cnn": share})["cnn"]
    n_rungs = len(ablation_steps(prepared.space, None))
    rounds = math.ceil(n_rungs / TrialSlots(CPUS_PER_TRIAL, [share])())
    return rounds * prepared.space.epochs * len(rows) * sum(pace)


def run_ablation(prepared: PreparedData, folder: RunFolder, progress: Progress) -> None:
    """Train every rung that an earlier session did not, and write what they came to.

    Writes `ladder/`, `ablation.csv` and the summary's section `ablation`.
    """
    space, context = prepared.space, prepared.context
    probed = folder.summary.get("probe", {})
    pretrained = next(
        (name for name in [*probed, *context.weights] if name in context.weights), None
    )
    rungs = ablation_steps(space, pretrained)
    progress.begin("ablation", len(rungs), "rungs")
    store = folder.path / "ablation"
    store.mkdir(exist_ok=True)
    done = {i: made for i, rung in enumerate(rungs) if (made := _load(store, i, rung, context))}
    shares = folder.summary["gpu_fraction"]
    rows = prepared.rows("train"), prepared.rows("val")
    pending = {
        _train_step.options(
            scheduling_strategy=EVERYWHERE,
            num_cpus=CPUS_PER_TRIAL,
            num_gpus=_share(rung.config.backbone, shares),
        ).remote(context, rung.config, *rows): index
        for index, rung in enumerate(rungs)
        if index not in done
    }
    while pending:
        progress.advance(len(done), len(rungs))
        (ready,), _ = ray.wait(list(pending))
        index = pending.pop(ready)
        made = done[index] = AblationResult(rungs[index], ray.get(ready))
        _save(store, index, made)
        last = made.curve[-1]
        progress.say(
            f"{made.rung.name}: {last.train_accuracy:.4f} in training,"
            f" {last.val_accuracy:.4f} in validation"
        )
    results = [done[index] for index in range(len(rungs))]
    _write_table(folder.path / "ladder.csv", results)
    folder.note("ablation", [made.as_json() for made in results])


def _share(backbone: str, shares: Mapping[str, float]) -> float:
    """Return the share of a GPU for a backbone, which the search may not have had."""
    return shares.get(backbone, max(shares.values(), default=0.0))


def _load(store: Path, index: int, rung: Rung, context: TrainingContext) -> AblationResult | None:
    """Read a rung of an earlier session; None where it was not finished, or is another now."""
    try:
        kept = json.loads((store / f"{index}.json").read_text(encoding="utf-8"))
        curve = tuple(EpochResult(**epoch) for epoch in kept["curve"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = kept["config"] == asdict(rung.config) and len(curve) == context.epochs
    return AblationResult(rung, curve) if same else None


def _save(store: Path, index: int, made: AblationResult) -> None:
    kept = {"config": asdict(made.rung.config), "curve": [asdict(epoch) for epoch in made.curve]}
    partial = store / f"{index}.json.partial"
    partial.write_text(json.dumps(kept), encoding="utf-8")
    partial.replace(store / f"{index}.json")


def _write_table(path: Path, results: Sequence[AblationResult]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rung", "name", "epoch", *_COLUMNS])
        for index, made in enumerate(results, start=1):
            for epoch in made.curve:
                values = [round(getattr(epoch, name), 6) for name in _COLUMNS]
                writer.writerow([index, made.rung.name, epoch.epoch, *values])


@ray.remote(max_retries=3)
def _train_step(
    context: TrainingContext, config: TrialConfig, train_rows: np.ndarray, val_rows: np.ndarray
) -> tuple[EpochResult, ...]:
    compute_with(threads_of_worker())
    trainer = create_trainer(
        context,
        config,
        torch.from_numpy(train_rows.copy()),
        torch.from_numpy(val_rows.copy()),
        seed=context.seed * 1_000_003 + 700_001,
        epochs=context.epochs,
    )
    return tuple(trainer.run_epoch() for _ in range(context.epochs))
