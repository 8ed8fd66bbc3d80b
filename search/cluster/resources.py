"""Who works where: how many trials share a GPU, by measured memory, and which machines take trials.

Where there are GPUs, all trials run on them. A machine without one would hold a trial for so long
that the search ended later; it decodes images and fits probes, which ask for CPUs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import ray
import torch

from search.cluster.nodes import Node, autoscaler_nodes, machines
from spaces.base import Space, TrialConfig, values_of
from trainables.trainer import Trainer
from trainables.worker import TrainingContext, create_trainer, resolve_config

CPUS_PER_TRIAL = 1.0

MAX_TRIALS_PER_GPU = 8
"""Trials on one GPU; more only wait for each other."""

MARGIN = 1.15
"""What a trial is given over its measured peak, for fragments and other batch shapes."""

_SLOTS_VALID_SECONDS = 2.0
"""How long a count of the machines is good for: each costs a call to the head."""

CONTEXT_BYTES = 600 * 2**20
"""What a process's CUDA context takes, which PyTorch does not count."""


@dataclass(frozen=True)
class GpuMemory:
    """What the deepest unfreezing of a backbone was measured to take on a GPU.

    Attributes:
        peak_bytes: Most that was allocated during a training step.
        total_bytes: The GPU's memory.
    """

    peak_bytes: int
    total_bytes: int


def gpu_fraction_for(gpu_memory: GpuMemory, most: int = MAX_TRIALS_PER_GPU) -> float:
    """Return the share of a GPU that a trial asks for: 1/k for the largest k that fits.

    Args:
        gpu_memory: As measured.
        most: Upper bound of k, at least 1.
    """
    needed = gpu_memory.peak_bytes * MARGIN + CONTEXT_BYTES
    fitting = int(gpu_memory.total_bytes // needed)
    return 1.0 / max(1, min(fitting, most))


def heaviest_config(space: Space, backbone: str) -> TrialConfig:
    """Return the configuration of a backbone that takes most memory: least frozen, widest batch."""
    largest = {
        name: max(values_of(space.params[name]))
        for name in ("batch_size", "hidden_units")
        if name in space.params
    }
    config = TrialConfig(backbone=backbone, freeze_depth=space.freeze_depths[0], augment=0.5)
    return resolve_config(vars(replace(config, **largest)))  # type: ignore[arg-type]


def measure_gpu_fractions(
    space: Space, context: TrainingContext, rows: np.ndarray
) -> dict[str, float]:
    """Measure each backbone's footprint, and return the share of a GPU that a trial asks for.

    Of several kinds of GPU, each is measured, and the one that takes fewest trials decides: a trial
    asks for the same share wherever it runs. Without a GPU every share is 0.
    """
    with_gpus = [machine for machine in machines() if machine.gpus]
    if not with_gpus:
        return dict.fromkeys(space.backbones, 0.0)
    kinds = {machine.gpu_kind for machine in with_gpus}
    most = max(1, min(MAX_TRIALS_PER_GPU, *(int(m.cpus / m.gpus) for m in with_gpus)))
    tasks = {
        name: [
            _measure.options(resources={f"accelerator_type:{kind}": 0.001} if kind else {}).remote(
                context, heaviest_config(space, name), rows
            )
            for kind in sorted(kinds)
        ]
        for name in space.backbones
    }
    return {
        name: max(gpu_fraction_for(gpu_memory, most) for gpu_memory in ray.get(measured))
        for name, measured in tasks.items()
    }


class TrialSlots:
    """How many trials the machines take at a time, as machines come and go."""

    def __init__(self, cpus: float, shares: Sequence[float]) -> None:
        """Count for trials of so many CPUs and, at least, the smallest of these shares of a GPU."""
        self._cpus = cpus
        self._share = min((share for share in shares if share > 0), default=0.0)
        self._count, self._counted_at = 1, float("-inf")

    def __call__(self) -> int:
        """Return how many; at least one."""
        if monotonic() - self._counted_at > _SLOTS_VALID_SECONDS:
            there = [*machines(), *autoscaler_nodes()]
            self._count = max(1, sum(places(m, self._cpus, self._share) for m in there))
            self._counted_at = monotonic()
        return self._count


def places(machine: Node, cpus: float, share: float) -> int:
    """Return how many trials of some CPUs and some share of a GPU a machine takes at a time."""
    by_cpu = int(machine.cpus / cpus)
    return min(by_cpu, int(machine.gpus / share + 1e-6)) if share > 0 else by_cpu


@ray.remote(num_gpus=1)
def _measure(context: TrainingContext, config: TrialConfig, rows: np.ndarray) -> GpuMemory:
    """Train one batch on an otherwise free GPU and read the peak."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    batch = torch.from_numpy(rows[: config.batch_size].copy())
    trainer: Trainer = create_trainer(
        replace(context, feature_cache=None), config, batch, batch[:1], seed=0, epochs=1
    )
    trainer.run_epoch()
    total = torch.cuda.get_device_properties(device).total_memory
    return GpuMemory(torch.cuda.max_memory_allocated(device), total)
