"""CPUs and GPUs that trials need, and how many trials the nodes can run in parallel.

Several trials run on one GPU, by their measured memory. Where there are GPUs, all trials run on
them: a node without one would take so long for a trial that the search ended later. Such nodes
decode images and fit linear probes, which need CPUs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import ray
import torch

from search.cluster.nodes import Node, autoscaler_nodes, nodes
from spaces.base import Space, TrialConfig
from spaces.parameters import values_of
from trainables.worker import TrainingContext, create_trainer, resolve_config

CPUS_PER_TRIAL = 1.0

MAX_TRIALS_PER_GPU = 8
"""More trials on one GPU only wait for each other."""

MEMORY_MARGIN = 1.15
"""Factor on a trial's measured peak, for fragmentation and batches of other shapes."""

SLOTS_VALID_SECONDS = 2.0
"""How long a count of trial slots is reused; a new one costs a call to the head node."""

CUDA_CONTEXT_BYTES = 600 * 2**20
"""Memory of a process's CUDA context, which PyTorch does not count."""


@dataclass(frozen=True)
class GpuMemory:
    """Measured GPU memory of a backbone with as many trainable stages as the space allows.

    Attributes:
        peak_bytes: Peak of the allocated memory during a training step.
        total_bytes: Memory of the GPU.
    """

    peak_bytes: int
    total_bytes: int


def assigned_cpus() -> int:
    """Return how many CPUs Ray assigned to this task or actor, at least 1."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def gpu_fraction_for(gpu_memory: GpuMemory, max_trials: int = MAX_TRIALS_PER_GPU) -> float:
    """Return the fraction of a GPU for one trial: 1/k for the largest k that fits.

    Args:
        gpu_memory: As measured.
        max_trials: Upper bound of k, at least 1.
    """
    needed = gpu_memory.peak_bytes * MEMORY_MARGIN + CUDA_CONTEXT_BYTES
    fitting = int(gpu_memory.total_bytes // needed)
    return 1.0 / max(1, min(fitting, max_trials))


def heaviest_config(space: Space, backbone: str) -> TrialConfig:
    """Return a backbone's configuration with the largest memory: least frozen, largest batch."""
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
    """Measure the GPU memory of each backbone; return the fraction of a GPU for one of its trials.

    Those are measured, too, that are not searched, but whose linear probes are finalists.

    Each kind of GPU is measured, and the one with the fewest trials decides, because a trial needs
    the same fraction wherever it runs. Without a GPU all fractions are 0.

    Args:
        space: The run's space.
        context: The run's training context.
        rows: Table rows of the training images.
    """
    names = list(dict.fromkeys([*space.backbones, *context.heads]))
    gpu_nodes = [node for node in nodes() if node.gpus]
    if not gpu_nodes:
        return dict.fromkeys(names, 0.0)
    kinds = {node.gpu_kind for node in gpu_nodes}
    max_trials = max(
        1, min(MAX_TRIALS_PER_GPU, *(int(node.cpus / node.gpus) for node in gpu_nodes))
    )
    tasks = {
        name: [
            measure_gpu_memory.options(
                resources={f"accelerator_type:{kind}": 0.001} if kind else {}
            ).remote(context, heaviest_config(space, name), rows)
            for kind in sorted(kinds)
        ]
        for name in names
    }
    return {
        name: max(gpu_fraction_for(gpu_memory, max_trials) for gpu_memory in ray.get(measured))
        for name, measured in tasks.items()
    }


@ray.remote(num_gpus=1)
def measure_gpu_memory(
    context: TrainingContext, config: TrialConfig, rows: np.ndarray
) -> GpuMemory:
    """Train on one batch, on a GPU that is otherwise idle, and return the peak of its memory."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    batch = torch.from_numpy(rows[: config.batch_size].copy())
    uncached = replace(context, feature_source=None)
    create_trainer(uncached, config, batch, batch[:1], seed=0, epochs=1).run_epoch()
    total = torch.cuda.get_device_properties(device).total_memory
    return GpuMemory(torch.cuda.max_memory_allocated(device), total)


class TrialSlots:
    """Counts how many trials the nodes can run in parallel, as nodes join and leave."""

    def __init__(self, cpus: float, gpu_fractions: Sequence[float]) -> None:
        """Count slots of a size.

        Args:
            cpus: CPUs per trial.
            gpu_fractions: Fractions of a GPU that trials need; the smallest above 0 counts.
        """
        self._cpus = cpus
        self._gpu_fraction = min((f for f in gpu_fractions if f > 0), default=0.0)
        self._count, self._counted_at = 1, float("-inf")

    def __call__(self) -> int:
        """Return the number of slots, those of nodes that may still join included; at least 1."""
        if monotonic() - self._counted_at > SLOTS_VALID_SECONDS:
            possible = [*nodes(), *autoscaler_nodes()]
            slots = (slots_on(node, self._cpus, self._gpu_fraction) for node in possible)
            self._count = max(1, sum(slots))
            self._counted_at = monotonic()
        return self._count


def slots_on(node: Node, cpus: float, gpu_fraction: float) -> int:
    """Return how many trials of some CPUs and a fraction of a GPU a node can run in parallel."""
    by_cpu = int(node.cpus / cpus)
    return min(by_cpu, int(node.gpus / gpu_fraction + 1e-6)) if gpu_fraction > 0 else by_cpu
