"""How fast the machines are, before any trial has run: what a time budget asks."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import numpy as np
import ray
import torch

from search.cluster.resources import CPUS_PER_TRIAL
from trainables.compute import compute_with
from trainables.feature_cache import mixed_precision
from trainables.images import crop_and_normalise
from trainables.worker import TrainingContext, clone_backbone, threads_of_worker, training_device

_IMAGES = 16


def measure_throughput(
    context: TrainingContext, rows: np.ndarray, shares: Mapping[str, float]
) -> dict[str, tuple[float, ...]]:
    """Return, by backbone, the seconds that one image takes to train each of the five stages.

    Args:
        context: What all trainings share.
        rows: Table rows of the images that trials train on.
        shares: By backbone, the share of a GPU that a trial takes.
    """
    few = rows[:_IMAGES]
    measured = {
        name: _measure.options(num_cpus=CPUS_PER_TRIAL, num_gpus=share).remote(context, name, few)
        for name, share in shares.items()
    }
    return {name: ray.get(pace) for name, pace in measured.items()}


@ray.remote(max_retries=3)
def _measure(context: TrainingContext, backbone: str, rows: np.ndarray) -> tuple[float, ...]:
    compute_with(threads_of_worker())
    device = training_device()
    network = clone_backbone(context, backbone, 0, device).train()
    network.freeze(0)  # an earlier trial of this worker may have frozen what it is a copy of
    images = context.images(device).take(torch.from_numpy(rows.copy()), device)
    for _ in range(2):  # the first time finds out how
        x = crop_and_normalise(images, context.image_size)
        seconds = []
        for stage in range(5):
            started = perf_counter()
            with mixed_precision(device):
                x = network(x.detach().requires_grad_(stage > 0), stage, stage + 1)
            x.sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append((perf_counter() - started) / len(rows))
    return tuple(seconds)
