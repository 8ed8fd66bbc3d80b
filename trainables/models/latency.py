"""Measure how long a backbone takes for one image, as a prediction does."""

from __future__ import annotations

import statistics
from time import perf_counter

import torch

from trainables.compute import mixed_precision
from trainables.models.backbones import Backbone

_WARM_UP = 2  # passes that allocate memory and choose algorithms
_PASSES = 5
_MAX_SECONDS = 2.0


@torch.no_grad()
def measure_latency(backbone: Backbone, image_size: int, device: torch.device) -> float:
    """Return the milliseconds of one forward pass with a batch of one: the median of five.

    A pass that takes so long that five would exceed two seconds is measured fewer times.

    Args:
        backbone: Is moved to the device, and set to eval mode.
        image_size: Side in pixels that it sees.
        device: Where to compute: on the CPU with all of PyTorch's threads.
    """
    network = backbone.to(device).to(memory_format=torch.channels_last).eval()
    x = torch.zeros(1, 3, image_size, image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds: list[float] = []
    while len(seconds) < _WARM_UP + _PASSES and sum(seconds) < _MAX_SECONDS:
        started = perf_counter()
        with mixed_precision(device):
            network(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - started)
    return 1000 * statistics.median(seconds[_WARM_UP:] or seconds)
