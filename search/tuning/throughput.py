"""Measure the training time per image of each backbone, for a time budget to plan with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from time import perf_counter

import numpy as np
import ray
import torch

from search.cluster.resources import CPUS_PER_TRIAL, assigned_cpus
from trainables.compute import configure_cpu, training_precision
from trainables.images import crop_pixels
from trainables.models.network_cut import N_STAGES
from trainables.worker import TrainingContext, clone_backbone, training_device

_N_IMAGES = 16


def measure_throughput(
    context: TrainingContext, rows: np.ndarray, gpu_fractions: Mapping[str, float]
) -> dict[str, tuple[float, ...]]:
    """Return, by backbone, the seconds per image of training each of the five stages.

    Args:
        context: The run's training context.
        rows: Table rows of the training images.
        gpu_fractions: By backbone, the fraction of a GPU for one trial.
    """
    measured = {
        name: _measure.options(num_cpus=CPUS_PER_TRIAL, num_gpus=fraction).remote(
            context, name, rows[:_N_IMAGES]
        )
        for name, fraction in gpu_fractions.items()
    }
    return {name: ray.get(seconds) for name, seconds in measured.items()}


@ray.remote(max_retries=3)
def _measure(context: TrainingContext, backbone: str, rows: np.ndarray) -> tuple[float, ...]:
    configure_cpu(assigned_cpus())
    return seconds_per_image(context, backbone, rows)


def seconds_per_image(
    context: TrainingContext, backbone: str, rows: np.ndarray
) -> tuple[float, ...]:
    """Train each stage of a backbone on some images; return the seconds per image of each."""
    device = training_device()
    network = clone_backbone(context, backbone, 0, device).train()
    network.freeze(0)  # an earlier trial of this worker may have frozen what this is a copy of
    images = context.images(device).take(torch.from_numpy(rows.copy()), device)
    fastest = [math.inf] * N_STAGES
    # The first pass warms up: memory is allocated, algorithms are chosen. Of the others the faster
    # one is less disturbed by other processes.
    for is_warm in (False, True, True):
        x = crop_pixels(images, context.image_size)
        seconds = []
        for stage in range(N_STAGES):
            started = perf_counter()
            with training_precision(device):
                x = network(x.detach().requires_grad_(stage > 0), stage, stage + 1)
            x.sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append((perf_counter() - started) / len(rows))
        if is_warm:
            fastest = list(map(min, fastest, seconds))
    return tuple(fastest)
