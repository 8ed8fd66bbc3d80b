import math
from typing import Any

import pytest
import timm
from torch import nn

from spaces.base import TrialConfig
from trainables.optimization import (
    LearningRateSchedule,
    cosine_with_warmup,
    create_optimizer,
)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (22, 0.5),
        (31, 0.5 * (1 + math.cos(math.pi * 27 / 36))),
        (39, 0.5 * (1 + math.cos(math.pi * 35 / 36))),
    ],
)
def test_cosine_warms_up_over_a_tenth_and_decays_to_zero(step, factor):
    assert cosine_with_warmup(step, 40) == pytest.approx(factor)


def test_cosine_of_a_single_step_is_not_zero():
    assert cosine_with_warmup(0, 1) == 1.0


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_create_optimizer_decays_neither_biases_nor_normalisation(optimizer: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    config = TrialConfig("tinynet", optimizer=optimizer, weight_decay=0.3)
    decayed, plain = create_optimizer(config, network.named_parameters()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in plain["params"]} == {1}
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext2", "swinv2_cr_tiny_ns_224"])
def test_tokens_positions_and_layer_scales_are_not_decayed(name: str) -> None:
    network = timm.create_model(name)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = create_optimizer(TrialConfig("tinynet"), network.named_parameters()).param_groups
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in groups)
    assert decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert not any("conv" in name and name.endswith("weight") for name in plain)


def test_a_schedule_resumes_on_its_plateau() -> None:
    def create(**options: Any) -> LearningRateSchedule:
        return LearningRateSchedule(TrialConfig("tinynet", lr=0.5, scheduler="plateau"), 9, 2)

    first, second = create(), create()
    for _ in range(5):
        first.end_epoch(1.0)
    assert first.lr(5, 0) == pytest.approx(0.05)
    second.load_state_dict(first.state_dict())
    assert second.lr(5, 0) == pytest.approx(0.05)
