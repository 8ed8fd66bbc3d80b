import copy
import inspect
import pickle
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from spaces.base import Space
from spaces.rules import SpaceError
from spaces.sources import digits, folder

GOOD: dict[str, Any] = {"source": folder(), "params": {"backbone": "cnn"}}
NAMES = ", ".join(field.name for field in fields(Space))


def problems_of(*values: Any, **named: Any) -> tuple[str, ...]:
    with pytest.raises(SpaceError) as caught:
        Space(*values, **named)
    return caught.value.problems


def test_a_mistyped_field_is_not_missing_too() -> None:
    assert problems_of(sorce=folder(), params=GOOD["params"]) == (
        "unknown field 'sorce'; did you mean 'source'?",
    )


def test_what_a_space_needs_is_explained() -> None:
    assert problems_of() == (
        "source is missing: the images, such as source=folder()",
        "params is missing: the hyperparameters, such as params={'backbone': 'resnet18'}",
    )


def test_unknown_fields() -> None:
    assert problems_of(**GOOD, elephant=1, lr=0.1) == (
        f"unknown field 'elephant' (known: {NAMES})",
        "unknown field 'lr': it is a hyperparameter, which belongs in params",
    )


def test_unknown_fields_do_not_hide_other_mistakes() -> None:
    assert problems_of(**GOOD, epoch=3, folds=1, flip="no") == (
        "unknown field 'epoch'; did you mean 'epochs'?",
        "2 <= folds <= 100 must hold, but got 1",
        "flip must be True or False, but got 'no'",
    )


def test_values_without_names() -> None:
    assert Space(folder(), {"backbone": "cnn"}, 96).image_size == 96
    assert problems_of(folder(), {"backbone": "cnn"}, source=folder()) == ("source is given twice",)
    assert problems_of(*Space(**GOOD).__dict__.values(), 1)[0] == (
        f"a space has {len(fields(Space))} fields, but {len(fields(Space)) + 1} were given"
    )


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("source", None, "source must come from spaces.sources, but got None"),
        ("source", folder, "source must be a source, but got a function: write folder()"),
        ("external", digits, "external must be a source, but got a function: write digits()"),
        ("external", "photos", "external must come from spaces.sources, but got 'photos'"),
        (
            "params",
            3,
            "params must be a dict of hyperparameters, such as {'backbone': 'resnet18'}, but got 3",
        ),
        ("first_trials", {"lr": 1}, "first_trials must be a tuple of dicts, but got one: write ({"),
        ("first_trials", 3, "first_trials must be a tuple of dicts, but got 3"),
        ("first_trials", (3,), "first_trials[0]: it must be a dict of hyperparameters, but got 3"),
        ("first_trials", ({3: 4},), "first_trials[0]: 3 is not a parameter of this space"),
        (
            "first_trials",
            ({"backbone": ["cnn"]},),
            "first_trials[0]: backbone = ['cnn'], but the space fixes it at 'cnn'",
        ),
        ("image_size", "224", "16 <= image_size <= 1024 must hold, but got '224'"),
        ("epochs", None, "1 <= epochs <= 10000 must hold, but got None"),
        ("trials", True, "1 <= trials <= 1e+06 must hold, but got True"),
        ("val_fraction", "0.2", "0.05 <= val_fraction <= 0.5 must hold, but got '0.2'"),
        ("test_fraction", None, "0.05 <= test_fraction <= 0.5 must hold, but got None"),
        ("resize_size", "256", "resize_size must be a whole number or None, but got '256'"),
        ("resize_size", 5000, "resize_size <= 4096 must hold, but got 5000"),
        ("resize_size", 200, "resize_size >= image_size must hold, but got 200 < 224"),
        ("patience", 2.5, "patience must be a whole number or None, but got 2.5"),
        ("patience", 0, "patience >= 1 must hold, but got 0"),
        ("flip", 1, "flip must be True or False, but got 1"),
        ("weights", None, "weights must be 'pretrained' or 'none', but got None"),
        ("resize_mode", ["pad"], "resize_mode must be 'pad' or 'crop', but got ['pad']"),
    ],
)
def test_a_value_of_any_type_is_one_problem(name: str, value: object, problem: str) -> None:
    (found,) = problems_of(**{**GOOD, name: value})
    assert found.startswith(problem)


@pytest.mark.parametrize("wrong", [None, "x", 3, 2.5, True, [], {}, object(), print, float("nan")])
def test_no_type_of_any_field_raises_another_error(wrong: object) -> None:
    """All fields are wrong at once, and each alone; a field that the value suits is no problem."""
    for names in [[field.name] for field in fields(Space)] + [[f.name for f in fields(Space)]]:
        with suppress(SpaceError):
            Space(**{**GOOD, **dict.fromkeys(names, wrong)})


@pytest.mark.parametrize("wrong", [[1e-3, 1e-2], (16, 32), {}, {1}, object(), range(3)])
def test_several_values_are_a_distribution(wrong: object) -> None:
    (problem,) = problems_of(**{**GOOD, "params": {"backbone": "cnn", "lr": wrong}})
    assert problem.startswith(
        "lr must be one value or a distribution, such as CategoricalDistribution([…]), but got "
    )


def test_a_first_trial_of_any_type_is_compared_with_its_distribution() -> None:
    params = {"backbone": CategoricalDistribution(["cnn"]), "lr": FloatDistribution(0.1, 1.0)}
    for wrong in ([0.5], object(), None):
        (problem,) = problems_of(source=folder(), params=params, first_trials=({"lr": wrong},))
        assert problem.startswith(f"first_trials[0]: lr = {wrong!r} is outside ")


def test_a_space_is_an_ordinary_dataclass_otherwise() -> None:
    space = Space(**GOOD)
    assert copy.deepcopy(space).params == pickle.loads(pickle.dumps(space)).params == space.params
    assert replace(space, epochs=3).epochs == 3
    with pytest.raises(SpaceError, match="did you mean 'epochs'"):
        replace(space, epoch=3)
    assert list(inspect.signature(Space).parameters) == NAMES.split(", ")
