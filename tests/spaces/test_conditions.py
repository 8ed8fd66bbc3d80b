from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.conditions import ByValue, When, join, matches
from spaces.rules import SpaceError
from spaces.sources import folder

SLOW, FAST = FloatDistribution(1e-6, 1e-4, log=True), FloatDistribution(1e-4, 1e-2, log=True)
WIDTHS = CategoricalDistribution([0, 256])
PARAMS: dict[str, Any] = {
    "hidden_units": When({"freeze_depth": 5}, WIDTHS),
    "lr": ByValue("backbone", {"vit_*": SLOW, "squeezenet1_0": FAST}, default=FAST),
    "backbone": CategoricalDistribution(["squeezenet1_0", "vit_b_16", "resnet18"]),
    "freeze_depth": IntDistribution(0, 5),
    "batch_size": ByValue("backbone", {"vit_*": 16}, default=IntDistribution(16, 64)),
    "dropout": 0.2,
}


def space(first_trials: tuple[Any, ...] = (), **changes: Any) -> Space:
    return Space(source=folder(), params={**PARAMS, **changes}, first_trials=first_trials)


def problems_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(SpaceError) as caught:
        space(**changes)
    return caught.value.problems


def test_what_a_trial_draws_depends_on_what_it_has_drawn() -> None:
    vit, head = {"backbone": "vit_b_16", "freeze_depth": 3}, {"freeze_depth": 5}
    found = {name: space().parameter(name, vit) for name in PARAMS}
    assert (found["lr"], found["batch_size"], found["hidden_units"]) == (SLOW, 16, None)
    assert space().parameter("lr", {"backbone": "resnet18"}) == FAST
    assert space().parameter("hidden_units", head) == WIDTHS
    assert space().parameter("lr", head) is None, "its backbone is not drawn yet"
    assert space().draw_order[-3:] == ("hidden_units", "lr", "batch_size")


def test_a_trial_is_completed_with_the_constants_of_its_branch() -> None:
    vit = {"backbone": "vit_b_16", "freeze_depth": 3, "lr": 1e-5}
    assert space().complete(vit) == {**vit, "batch_size": 16, "dropout": 0.2}
    resnet = {"backbone": "resnet18", "freeze_depth": 5, "lr": 1e-3, "batch_size": 32}
    assert space().complete(resnet) == {**resnet, "dropout": 0.2}


def test_all_ranges_of_a_parameter_are_one_where_one_is_asked_for() -> None:
    assert space().distributions["lr"] == FloatDistribution(1e-6, 1e-2, log=True)
    assert space().constants == {"dropout": 0.2}
    assert join([IntDistribution(0, 4, step=2), IntDistribution(1, 9)]) == IntDistribution(0, 9)
    assert join([WIDTHS, WIDTHS]) == WIDTHS
    augment = ByValue("backbone", {"vit_*": 0.9}, default=FloatDistribution(0.0, 0.5))
    assert space(augment=augment).max_augment == 0.9
    depth = ByValue("backbone", {"vit_*": 5}, default=IntDistribution(0, 2))
    assert space(freeze_depth=depth, hidden_units=0).freeze_depths == (0, 1, 2, 5)


def test_in_words() -> None:
    condition = {"freeze_depth": (4, 5), "optimizer": "sgd"}
    assert str(When(condition, 64)) == "64 where freeze_depth is 4 or 5 and optimizer is sgd"
    assert str(ByValue("backbone", {"cnn": 1}, default=2)) == "1 for backbone cnn; else 2"


def test_what_a_key_stands_for() -> None:
    assert matches(("timm/vit_*",), "timm/vit_tiny")
    assert matches((0, 5), 5)
    for key, value in (("vit_*", "timm/vit_tiny"), (True, 1), ("5", 5), ([5], 5)):
        assert not matches((key,), value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {
                "backbone": ByValue("freeze_depth", {5: "cnn"}, default="resnet18"),
                **dict.fromkeys(("lr", "batch_size"), 1),
            },
            "backbone cannot depend on another parameter: the others may depend on it",
        ),
        (
            {"hidden_units": When({"freeze_dept": 5}, WIDTHS)},
            "hidden_units cannot depend on 'freeze_dept': it is not a parameter of this space; did"
            " you mean 'freeze_depth'?",
        ),
        (
            {"hidden_units": When({"freeze_depth": 6}, WIDTHS)},
            "hidden_units depends on freeze_depth, which is never 6",
        ),
        (
            {"hidden_units": When({"freeze_depth": (4, "5")}, WIDTHS)},
            "hidden_units depends on freeze_depth, which is never '5'; did you mean '5'?",
        ),
        (
            {"dropout": ByValue("backbone", {"resnet81": 0.1}, default=0.2)},
            "dropout depends on backbone, which is never 'resnet81'; did you mean 'resnet18'?",
        ),
        (
            {"dropout": When({"hidden_units": 256}, 0.5)},
            "dropout cannot depend on 'hidden_units': it depends on another parameter itself",
        ),
        (
            {"dropout": When({"dropout": 0.5}, 0.5)},
            "dropout cannot depend on 'dropout': that is itself",
        ),
        (
            {"dropout": When({"augment": 0.5}, 0.5), "augment": FloatDistribution(0, 1)},
            "dropout cannot depend on 'augment': it must have choices, whole numbers or one value",
        ),
        (
            {"dropout": When({}, 0.5)},
            "dropout: When needs a dict of conditions, such as {'freeze_depth': 5}, but got {}",
        ),
        (
            {"dropout": ByValue("backbone", 0.5)},  # type: ignore[arg-type]
            "dropout: ByValue needs a dict of cases, such as {'resnet18': 1e-3}, but got 0.5",
        ),
        (
            {"dropout": ByValue("backbone", {"vit_*": 0.5})},
            "dropout has no case for backbone 'squeezenet1_0', 'resnet18': add it, or give a"
            " default",
        ),
        (
            {"dropout": ByValue("backbone", {"vit_*": 2.0}, default=0.1)},
            "0 <= dropout <= 0.95 must hold, but got 2.0",
        ),
        (
            {"lr": ByValue("backbone", {"vit_*": FloatDistribution(0.1, 0.2)}, default=FAST)},
            "the ranges of lr must differ in their ends only, and choices not at all, but got"
            " FloatDistribution(high=0.2, log=False, low=0.1, step=None) and"
            " FloatDistribution(high=0.01, log=True, low=0.0001, step=None)",
        ),
        (
            {"hidden_units": When({"freeze_depth": 5}, When({"dropout": 0.2}, WIDTHS))},  # type: ignore[arg-type]
            "hidden_units: a When cannot hold another: name all conditions in one dict",
        ),
    ],
)
def test_a_mistake_is_one_clear_problem(changes: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(**changes)
    assert found.startswith(problem)


def test_all_mistakes_are_named_at_once() -> None:
    wrong = When({"freeze_depth": 7, "optimiser": "sgd"}, CategoricalDistribution([-1]))
    assert problems_of(hidden_units=wrong) == (
        "hidden_units depends on freeze_depth, which is never 7",
        "hidden_units cannot depend on 'optimiser': it is not a parameter of this space",
        "0 <= hidden_units <= 65536 must hold, but got -1",
    )


@pytest.mark.parametrize("wrong", [None, "x", 3, [], object(), float("nan"), {"a": []}])
def test_no_type_raises_another_error(wrong: Any) -> None:
    for one in (When(wrong, wrong), ByValue("backbone", wrong, wrong), When({"dropout": wrong}, 1)):
        problems_of(augment=one)


def test_first_trials_are_checked_in_their_branch() -> None:
    vit = {"backbone": "vit_b_16", "lr": 1e-5, "freeze_depth": 5, "hidden_units": 256}
    assert space((vit,)).first_trials == (vit,)
    assert problems_of(
        first_trials=(
            {"backbone": "vit_b_16", "lr": 1e-3},
            {"lr": 1e-3},
            {"freeze_depth": 3, "hidden_units": 0},
            {"backbone": "vit_b_16", "batch_size": 32},
        )
    ) == (
        f"first_trials[0]: lr = 0.001 is outside {SLOW}",
        "first_trials[1]: lr depends on backbone, which it must name, too",
        "first_trials[2]: hidden_units = 0, but a trial like it has none:"
        f" {PARAMS['hidden_units']}",
        "first_trials[3]: batch_size = 32, but the space fixes it at 16",
    )


def test_fixed_parents_leave_plain_parameters() -> None:
    """As `--set` does: what no trial can have is gone, from the first trials too."""
    first = {"backbone": "resnet18", "freeze_depth": 5, "hidden_units": 256}
    head = space((first,)).with_constants({"freeze_depth": 5})
    assert head.params["hidden_units"] == WIDTHS
    assert head.first_trials == (first,)
    deep = space((first,)).with_constants({"freeze_depth": 2})
    assert "hidden_units" not in deep.params
    assert deep.first_trials == ({"backbone": "resnet18", "freeze_depth": 2},)
    both = space().with_constants({"freeze_depth": 2, "hidden_units": 64})
    assert both.constants == {"dropout": 0.2, "freeze_depth": 2, "hidden_units": 64}


def test_other_backbones_take_the_ranges_that_are_theirs() -> None:
    first = {"backbone": "resnet18", "lr": 5e-3, "batch_size": 64, "freeze_depth": 5}
    vit = space((first,)).with_backbones(["vit_b_16"])
    assert (vit.params["lr"], vit.params["batch_size"]) == (SLOW, 16)
    assert vit.first_trials == (
        {"backbone": "vit_b_16", "lr": 1e-4, "batch_size": 16, "freeze_depth": 5},
    )
    one_of_each = space().with_backbones(["vit_b_16", "resnet34"])
    assert one_of_each.params["lr"] == ByValue("backbone", {"vit_*": SLOW}, default=FAST)
    strict = space(lr=ByValue("backbone", {"squeezenet*": FAST, "vit_*": SLOW, "resnet18": FAST}))
    with pytest.raises(SpaceError, match="lr has no case for backbone 'cnn': add it, or give a"):
        strict.with_backbones(["cnn", "vit_b_16"])
    few = When({"backbone": ("vit_*", "resnet18")}, 0.3)
    assert "augment" not in space(augment=few).with_backbones(["cnn"]).params
    assert space(augment=few).with_backbones(["resnet18"]).params["augment"] == 0.3
