"""Measure how long a network takes for an image, as a prediction does."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

from trainables.compute import prediction_precision

_PASSES = 7  # the first allocates memory, and chooses algorithms
_MIN_PASSES = 3
_MAX_SECONDS = 1.0


@torch.no_grad()
def measure_latency(
    network: nn.Module,
    image_size: int,
    device: torch.device,
    batch_size: int = 1,
    passes: int = _PASSES,
    precision: Callable[[torch.device], torch.autocast] = prediction_precision,
) -> float:
    """Return the milliseconds an image of a forward pass: of the fastest of several passes.

    Other programs on the machine only add to a time, so the fastest is closest to the network's
    own. There are as many as a second suffices for, but three at least.

    Args:
        network: A backbone or a model; is moved to the device, and set to eval mode.
        image_size: Side in pixels that it sees.
        device: Where to compute: on the CPU with all of PyTorch's threads.
        batch_size: Images of a pass.
        passes: Passes at most, also where these are fewer than three.
        precision: What the network computes in; that of predictions, or of features.
    """
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    x = torch.zeros(batch_size, 3, image_size, image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds: list[float] = []
    while len(seconds) < passes and (len(seconds) < _MIN_PASSES or sum(seconds) < _MAX_SECONDS):
        started = perf_counter()
        with precision(device):
            network(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - started)
    return 1000 * min(seconds) / batch_size
