"""How many trials share a GPU: by measured memory, a backbone at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from spaces.base import Space, TrialConfig, values_of
from trainables.training import Trainer
from trainables.trial import Bench, create_trainer, settled

MOST_A_GPU = 8
"""Trials on one GPU; more only wait for each other."""

MARGIN = 1.15
"""What a trial is given over its measured peak, for fragments and other batch shapes."""

CONTEXT_BYTES = 600 * 2**20
"""What a process's CUDA context takes, which PyTorch does not count."""


@dataclass(frozen=True)
class Footprint:
    """What the deepest unfreezing of a backbone was measured to take on a GPU.

    Attributes:
        peak_bytes: Most that was allocated during a training step.
        total_bytes: The GPU's memory.
    """

    peak_bytes: int
    total_bytes: int


def gpu_share(footprint: Footprint, most: int = MOST_A_GPU) -> float:
    """Return the share of a GPU that a trial asks for: 1/k for the largest k that fits.

    Args:
        footprint: As measured.
        most: Upper bound of k, at least 1.
    """
    needed = footprint.peak_bytes * MARGIN + CONTEXT_BYTES
    fitting = int(footprint.total_bytes // needed)
    return 1.0 / max(1, min(fitting, most))


def heaviest_config(space: Space, backbone: str) -> TrialConfig:
    """Return the configuration of a backbone that takes most memory: least frozen, widest batch."""
    largest = {
        name: max(values_of(space.params[name]))
        for name in ("batch_size", "hidden_units")
        if name in space.params
    }
    depth = min(values_of(space.params.get("freeze_depth", TrialConfig.freeze_depth)))
    config = TrialConfig(backbone=backbone, freeze_depth=int(depth), augment=0.5)
    return settled(vars(replace(config, **largest)))  # type: ignore[arg-type]


def measure_shares(space: Space, bench: Bench, rows: np.ndarray) -> dict[str, float]:
    """Measure each backbone's footprint on one GPU, and return the share that a trial asks for.

    Without a GPU every share is 0.
    """
    resources: Mapping[str, Any] = ray.cluster_resources()
    n_gpus = resources.get("GPU", 0)
    if not n_gpus:
        return dict.fromkeys(space.backbones, 0.0)
    most = max(1, min(MOST_A_GPU, int(resources.get("CPU", 1) / n_gpus)))
    tasks = {
        name: _measure.remote(bench, heaviest_config(space, name), rows) for name in space.backbones
    }
    return {name: gpu_share(ray.get(task), most) for name, task in tasks.items()}


def most_concurrent(cpus: float, shares: Sequence[float]) -> int:
    """Return how many trials the cluster takes at a time, were all of the smallest share."""
    resources: Mapping[str, Any] = ray.cluster_resources()
    fits = [math.floor(resources.get("CPU", 1) / cpus)]
    positive = [share for share in shares if share > 0]
    if positive:
        fits.append(math.floor(resources.get("GPU", 0) / min(positive) + 1e-6))
    return max(1, int(min(fits)))


@ray.remote(num_gpus=1)
def _measure(bench: Bench, config: TrialConfig, rows: np.ndarray) -> Footprint:
    """Train one batch on an otherwise free GPU and read the peak."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    batch = torch.from_numpy(rows[: config.batch_size].copy())
    trainer: Trainer = create_trainer(
        replace(bench, banks=None), config, batch, batch[:1], seed=0, epochs=1
    )
    trainer.run_epoch()
    total = torch.cuda.get_device_properties(device).total_memory
    return Footprint(torch.cuda.max_memory_allocated(device), total)
