from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.conditions import ByValue, When
from spaces.parameters import all_values_of, values_of


def test_values_of_a_parameter() -> None:
    assert values_of(CategoricalDistribution([32, 64, 128])) == (32, 64, 128)
    assert values_of(IntDistribution(1, 4)) == (1, 4)
    assert values_of(FloatDistribution(0.0, 0.5)) == (0.0, 0.5)
    assert values_of("adam") == ("adam",)
    by_depth = ByValue("freeze_depth", {5: 64}, default=IntDistribution(8, 32))
    assert values_of(When({"backbone": "cnn"}, by_depth)) == (64, 8, 32)


def test_all_values_of_a_parameter() -> None:
    assert all_values_of(IntDistribution(1, 7, step=3)) == (1, 4, 7)
    assert all_values_of(ByValue("backbone", {"cnn": 2}, default=IntDistribution(1, 3))) == (
        *(2, 1, 3),
    )
    assert all_values_of(When({"freeze_depth": 5}, FloatDistribution(0.0, 0.5))) is None
