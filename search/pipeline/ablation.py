"""The ablation stage of the cats-and-dogs study: what each idea adds to a plain network.

A plain CNN, then dropout, then augmentation, then transfer from a pretrained network; each is
trained to full length on the same split. The result of the search does not depend on it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from search.cluster.nodes import EVERYWHERE
from search.cluster.resources import CPUS_PER_TRIAL, TrialSlots, assigned_cpus
from search.console.formatting import duration, percent
from search.console.progress import Progress
from search.pipeline.prepare import PreparedData
from search.runs.run_folder import RunFolder
from search.runs.summary import AblationScores
from search.runs.tables import ABLATION_COLUMNS, CURVE_COLUMNS, write_csv
from search.tuning.throughput import measure_throughput
from spaces.base import Space, TrialConfig
from trainables.compute import configure_cpu
from trainables.json_text import parse_json
from trainables.trial_result import EpochResult
from trainables.worker import TrainingContext, create_trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AblationStep:
    """One step: its name, and the configuration that it trains."""

    name: str
    config: TrialConfig


@dataclass(frozen=True)
class AblationResult:
    """A step that was trained to full length, and its epochs."""

    step: AblationStep
    curve: tuple[EpochResult, ...]

    def scores(self) -> AblationScores:
        """Return the step's entry in the summary."""
        last = self.curve[-1]
        best = max(self.curve, key=lambda epoch: epoch.score)
        return AblationScores(
            name=self.step.name,
            config=asdict(self.step.config),
            epochs=len(self.curve),
            train_accuracy=last.train_accuracy,
            val_accuracy=last.val_accuracy,
            best_val_accuracy=best.val_accuracy,
            best_epoch=best.epoch,
            seconds=sum(epoch.seconds for epoch in self.curve),
        )


def ablation_steps(space: Space, pretrained: str | None) -> list[AblationStep]:
    """Return the steps, from the plainest on; each adds to the one before.

    Args:
        space: Its constants hold in every step, except for what the step sets.
        pretrained: Backbone of the transfer step; None leaves that step out.
    """
    params = {**space.constants, "backbone": "cnn", "lr": 1e-3, "freeze_depth": 0}
    params |= {"hidden_units": 0, "dropout": 0.0, "augment": 0.0}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("plain CNN", {}),
        ("+ dropout", {"dropout": 0.5}),
        ("+ augmentation", {"augment": 0.4}),
    ]
    if pretrained is not None:
        transfer = {"backbone": pretrained, "freeze_depth": 5, "dropout": 0.2, "augment": 0.2}
        changes.append((f"transfer from {pretrained}", transfer))
    steps = []
    for name, change in changes:
        params |= change
        steps.append(AblationStep(name, TrialConfig.from_params(params)))
    return steps


def run_ablation(
    prepared: PreparedData,
    context: TrainingContext,
    pretrained: str | None,
    gpu_fraction: Mapping[str, float],
    seconds_left: float | None,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Train every step that an earlier session did not, unless it would take too long.

    Writes `ablation/`, `ablation.csv` and the summary's section `ablation`.

    Args:
        prepared: The images.
        context: What all trainings have in common.
        pretrained: Backbone of the transfer step; None leaves that step out.
        gpu_fraction: By backbone, the fraction of a GPU that a training takes.
        seconds_left: Seconds left of the time budget; None without one.
        folder: The run's folder.
        progress: Shows each step.
    """
    if seconds_left is not None:
        needed = expected_seconds(prepared, context, gpu_fraction)
        if needed > seconds_left:
            progress.warn(
                f"no ablation: it would take about {duration(needed)}, and"
                f" {duration(max(seconds_left, 0))} of the time budget are left"
            )
            return
    steps = ablation_steps(prepared.space, pretrained)
    progress.begin("ablation", len(steps), "steps")
    store = folder.path / "ablation"
    done = {
        index: result
        for index, step in enumerate(steps)
        if (result := _load(store / f"{index}.json", step, context.epochs)) is not None
    }
    rows = prepared.rows("train"), prepared.rows("val")
    pending = {
        _train_step.options(
            scheduling_strategy=EVERYWHERE,
            num_cpus=CPUS_PER_TRIAL,
            num_gpus=_gpu_fraction(step.config.backbone, gpu_fraction),
        ).remote(context, step.config, *rows): index
        for index, step in enumerate(steps)
        if index not in done
    }
    while pending:
        progress.advance(len(done), len(steps))
        (ready,), _ = ray.wait(list(pending))
        index = pending.pop(ready)
        result = done[index] = AblationResult(steps[index], ray.get(ready))
        folder.write_json(f"ablation/{index}.json", asdict(result))
        last = result.curve[-1]
        progress.say(
            f"{result.step.name}: training accuracy {percent(last.train_accuracy, 2)},"
            f" validation accuracy {percent(last.val_accuracy, 2)}"
        )
    results = [done[index] for index in range(len(steps))]
    write_csv(folder.path / "ablation.csv", ABLATION_COLUMNS, _table(results))
    folder.write_summary(replace(folder.summary, ablation=[result.scores() for result in results]))


def expected_seconds(
    prepared: PreparedData, context: TrainingContext, gpu_fraction: Mapping[str, float]
) -> float:
    """Return the expected time of the ablation, by the speed of its steps with a whole CNN."""
    fraction, rows = _gpu_fraction("cnn", gpu_fraction), prepared.rows("train")
    seconds_per_image = measure_throughput(context, rows, {"cnn": fraction})["cnn"]
    n_steps = len(ablation_steps(prepared.space, None))
    n_rounds = math.ceil(n_steps / TrialSlots(CPUS_PER_TRIAL, [fraction])())
    return n_rounds * context.epochs * len(rows) * sum(seconds_per_image)


def _gpu_fraction(backbone: str, gpu_fraction: Mapping[str, float]) -> float:
    """Return a backbone's fraction of a GPU; it need not be one that was searched."""
    return gpu_fraction.get(backbone, max(gpu_fraction.values(), default=0.0))


def _load(path: Path, step: AblationStep, epochs: int) -> AblationResult | None:
    """Read a result of an earlier session; None where the step was not finished, or has changed."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        config = content["step"]["config"]
        curve = tuple(_read_epoch(epoch) for epoch in content["curve"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is damaged, and its step is trained again: %s", path, error)
        return None
    is_same = config == asdict(step.config) and len(curve) == epochs
    return AblationResult(step, curve) if is_same else None


def _read_epoch(content: dict[str, Any]) -> EpochResult:
    """Return an epoch that was written as JSON, where NaN is null."""
    values: dict[str, Any] = {name: math.nan if v is None else v for name, v in content.items()}
    if not all(isinstance(value, int | float) for value in values.values()):
        raise TypeError("an epoch must hold numbers")
    return EpochResult(**values)


def _table(results: Sequence[AblationResult]) -> Iterator[list[object]]:
    for number, result in enumerate(results, start=1):
        for epoch in result.curve:
            values = [round(getattr(epoch, name), 6) for name in CURVE_COLUMNS]
            yield [number, result.step.name, *values]


@ray.remote(max_retries=3)
def _train_step(
    context: TrainingContext, config: TrialConfig, train_rows: np.ndarray, val_rows: np.ndarray
) -> tuple[EpochResult, ...]:
    configure_cpu(assigned_cpus())
    trainer = create_trainer(
        context,
        config,
        torch.from_numpy(train_rows.copy()),
        torch.from_numpy(val_rows.copy()),
        seed=context.seed * 1_000_003 + 700_001,
        epochs=context.epochs,
    )
    return tuple(trainer.run_epoch() for _ in range(context.epochs))
