"""Measure how long a network takes for an image, as a prediction does."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import nn

from trainables.compute import mixed_precision

_WARM_UP = 2  # passes that allocate memory and choose algorithms
_PASSES = 5
_MIN_PASSES = 3
_MAX_SECONDS = 2.0


@torch.no_grad()
def measure_latency(
    network: nn.Module, image_size: int, device: torch.device, batch_size: int = 1
) -> float:
    """Return the milliseconds an image of a forward pass: of the fastest of five passes.

    Other programs on the machine only add to a time, so the fastest is closest to the network's
    own. A pass that takes so long that five would exceed two seconds is measured three times.

    Args:
        network: A backbone or a model; is moved to the device, and set to eval mode.
        image_size: Side in pixels that it sees.
        device: Where to compute: on the CPU with all of PyTorch's threads.
        batch_size: Images of a pass.
    """
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    x = torch.zeros(batch_size, 3, image_size, image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds: list[float] = []
    for number in range(_WARM_UP + _PASSES):
        if number >= _WARM_UP + _MIN_PASSES and sum(seconds) > _MAX_SECONDS:
            break
        started = perf_counter()
        with mixed_precision(device):
            network(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= _WARM_UP:
            seconds.append(perf_counter() - started)
    return 1000 * min(seconds) / batch_size
