from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from spaces.base import Space
from spaces.conditions import ByValue, When
from spaces.first_trials import keep_known
from spaces.rules import SpaceError
from spaces.sources import folder

PARAMS: dict[str, Any] = {
    "backbone": CategoricalDistribution(["resnet18", "vit_b_16", "resnet34"]),
    "lr": ByValue(
        "backbone", {"vit_*": FloatDistribution(1e-6, 1e-4)}, default=FloatDistribution(1e-4, 1e-2)
    ),
    "freeze_depth": CategoricalDistribution([0, 5]),
    "hidden_units": When({"freeze_depth": 5}, CategoricalDistribution([0, 64])),
    "scheduler": "cosine",
}
BASELINE = {"backbone": "resnet18", "lr": 2e-3, "freeze_depth": 5}
OF_RESNETS = {"backbone": "resnet*", "lr": 1e-3, "freeze_depth": 0}
OF_ALL = {"backbone": "*", "lr": 1e-3, "freeze_depth": 5, "hidden_units": 64}


def space(*first_trials: Any) -> Space:
    return Space(source=folder(), params=PARAMS, first_trials=first_trials)


def test_one_for_many_is_tried_with_each_backbone_the_best_first() -> None:
    ranked = space(BASELINE, OF_RESNETS, OF_ALL).with_first_trials(
        ["vit_b_16", "resnet34", "resnet18"]
    )
    assert ranked.first_trials == (
        BASELINE,
        {**OF_RESNETS, "backbone": "resnet34"},
        {**OF_RESNETS, "backbone": "resnet18"},
        {**OF_ALL, "backbone": "vit_b_16", "lr": 1e-4},
        {**OF_ALL, "backbone": "resnet34"},
        {**OF_ALL, "backbone": "resnet18"},
    )
    assert ranked.with_first_trials(["vit_b_16"]) == ranked
    other = {"backbone": "resnet34", "freeze_depth": 0}
    assert ranked.with_first_trials([], [BASELINE, other]).first_trials[6:] == (other,)


def test_one_for_many_is_kept_where_it_stands_for_any() -> None:
    vit = space(BASELINE, OF_RESNETS, OF_ALL).with_backbones(["vit_b_16"])
    baseline = {**BASELINE, "backbone": "vit_b_16", "lr": 1e-4}
    assert vit.first_trials == (baseline, {**OF_ALL, "lr": 1e-4})
    deep = space(OF_ALL).with_constants({"freeze_depth": 0})
    (first, *_) = deep.with_first_trials(["resnet18"]).first_trials
    assert first == {"backbone": "resnet18", "lr": 1e-3, "freeze_depth": 0}


def test_what_is_wrong_with_one_for_many() -> None:
    with pytest.raises(SpaceError) as caught:
        space({"backbone": "resnets*", "lr": 20.0, "freeze_depth": 3, "mixup": 0.1})
    assert caught.value.problems == (
        "first_trials[0]: no backbone of this space is 'resnets*'; did you mean 'resnet34'?",
        "first_trials[0]: 1e-08 <= lr <= 10 must hold, but got 20.0",
        "first_trials[0]: freeze_depth = 3 is outside CategoricalDistribution(choices=(0, 5))",
        "first_trials[0]: 'mixup' is not a parameter of this space",
    )


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (BASELINE | {"hidden_units": 64}, BASELINE | {"hidden_units": 64}),
        (BASELINE | {"hidden_units": 32, "mixup": 0.1, "scheduler": "cosine"}, BASELINE),
        (
            {"backbone": "vit_b_16", "lr": 2e-3, "freeze_depth": 0, "hidden_units": 64},
            {"backbone": "vit_b_16", "freeze_depth": 0},
        ),
        ({"backbone": "cnn", "lr": 2e-3, "freeze_depth": 5}, {"freeze_depth": 5}),
        ({"backbone": "cnn"}, {}),
    ],
)
def test_of_another_spaces_configuration_is_kept_what_this_one_has(
    config: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert keep_known(config, space().params) == kept
