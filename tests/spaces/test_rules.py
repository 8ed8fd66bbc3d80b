import pickle
from dataclasses import fields

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import TrialConfig
from spaces.rules import BACKBONES, RULES, SpaceError, values_of
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


def test_values_of_a_parameter():
    assert values_of(CategoricalDistribution([32, 64, 128])) == (32, 64, 128)
    assert values_of(IntDistribution(1, 4)) == (1, 4)
    assert values_of(FloatDistribution(0.0, 0.5)) == (0.0, 0.5)
    assert values_of("adam") == ("adam",)


def test_space_error_can_be_pickled():
    error = SpaceError("Space file x.py", ["a is wrong", "b is wrong"])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), ("a is wrong", "b is wrong"))
    assert "x.py cannot be used:\n  - a is wrong\n  - b is wrong" in str(again)
