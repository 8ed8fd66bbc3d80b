import pickle
import re
from dataclasses import fields

import pytest

from spaces.base import TrialConfig
from spaces.rules import BACKBONES, RULES, SpaceError
from trainables.models.small_networks import SMALL_NETWORKS
from trainables.models.torchvision_stages import STAGE_PLANS


def test_rules_cover_every_field_of_trial_config():
    assert set(RULES) == {field.name for field in fields(TrialConfig)}
    config = TrialConfig.from_params({"backbone": "cnn", "lr": 0.1})
    assert config == TrialConfig("cnn", 0.1)
    broken = [RULES[name].broken_by(name, value) for name, value in vars(config).items()]
    assert broken == [None] * len(RULES), "a default breaks its own rule"


def test_every_backbone_can_be_built():
    assert len(set(BACKBONES)) == len(BACKBONES)
    assert set(BACKBONES) == {*STAGE_PLANS, *SMALL_NETWORKS}
    assert RULES["backbone"].choices == BACKBONES


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("lr", "1e-3", 0.001), ("lr", " 1 ", 1.0), ("freeze_depth", "3", 3)),
        *(("batch_size", "64", 64), ("optimizer", "Adam", "adam"), ("backbone", "cnn", "cnn")),
        *(("class_weights", "true", True), ("class_weights", "False", False), ("mixup", "0", 0.0)),
    ],
)
def test_a_value_is_read_in_its_parameters_type(name, text, value):
    parsed = RULES[name].parse(name, text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("lr", "nan", "1e-08 <= lr <= 10 must hold, but got nan"),
        ("lr", "1e-3,1e-2", "1e-08 <= lr <= 10 must hold, but got '1e-3,1e-2'"),
        ("freeze_depth", "2.5", "freeze_depth must be a whole number, but got 2.5"),
        ("freeze_depth", "all", "0 <= freeze_depth <= 5 must hold, but got 'all'"),
        ("class_weights", "1", "class_weights must be one of False, True, but got '1'"),
        (
            "optimizer",
            "adamv",
            "optimizer must be one of adam, adamw, sgd, but got 'adamv'; did you mean 'adam'?",
        ),
    ],
)
def test_a_value_that_breaks_a_rule_is_not_read(name, text, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        RULES[name].parse(name, text)


def test_space_error_can_be_pickled():
    error = SpaceError("Space file x.py", ["a is wrong", "b is wrong"])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), ("a is wrong", "b is wrong"))
    assert "x.py cannot be used:\n  - a is wrong\n  - b is wrong" in str(again)
