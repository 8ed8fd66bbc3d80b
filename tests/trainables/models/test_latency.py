import time

import torch
from torch import Tensor, nn

from trainables.models.backbones import Backbone
from trainables.models.latency import measure_latency


class Sleeps(nn.Module):
    """Takes a while, and longer at its first two calls."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.inputs = seconds, list[tuple[int, ...]]()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(tuple(x.shape))
        time.sleep(self.seconds * (10 if len(self.inputs) <= 2 else 1))
        return x


def backbone_of(first: nn.Module) -> Backbone:
    return Backbone("slow", [first, *(nn.Identity() for _ in range(4))], 3)


def test_a_batch_of_one_is_timed_without_the_first_passes() -> None:
    stage = Sleeps(0.02)
    milliseconds = measure_latency(backbone_of(stage), 24, torch.device("cpu"))
    assert set(stage.inputs) == {(1, 3, 24, 24)}
    assert 20 <= milliseconds < 100, "the first passes take 200 ms"


def test_a_backbone_that_begins_very_slowly_is_measured_by_its_later_passes() -> None:
    stage = Sleeps(0.1)
    milliseconds = measure_latency(backbone_of(stage), 8, torch.device("cpu"))
    assert 100 <= milliseconds < 1000, "the first passes take 1,000 ms"
    assert len(stage.inputs) == 3
