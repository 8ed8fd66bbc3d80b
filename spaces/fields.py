"""The rules of a space's fields: what breaks them, all at once, whatever a field's type is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from spaces.first_trials import config_problems
from spaces.parameters import parameter_problems
from spaces.rules import MAX_RESIZE_SIZE, RULES, Metric, ResizeMode, Rule
from spaces.sources import Source, did_you_mean

_WHOLE_NUMBERS: dict[str, tuple[float, float]] = {
    "image_size": (16, 1024),
    "epochs": (1, 10_000),
    "trials": (1, 1_000_000),
    "folds": (2, 100),
    "views": (1, 256),
    "keep_checkpoints": (1, 1_000_000),
}
_FRACTIONS = ("val_fraction", "test_fraction")
_SWITCHES = ("flip", "center_crop", "ablation")
_CHOICES: dict[str, tuple[str, ...]] = {
    "resize_mode": get_args(ResizeMode),
    "weights": ("pretrained", "none"),
    "metric": get_args(Metric),
}


def space_problems(
    given: Mapping[str, Any], required: tuple[str, ...], defaults: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong with the fields of a space.

    Args:
        given: The fields that are given, by name; they may have any type.
        required: Names of the fields without a default.
        defaults: The other fields, by name.
    """
    known = (*required, *defaults)
    names = ", ".join(known)
    missing = [name for name in required if name not in given]
    for name in given:
        if name in known:
            continue
        hint = did_you_mean(name, known)
        missing = [one for one in missing if repr(one) not in hint]  # it is the one mistyped
        if name in RULES:
            hint = ": it is a hyperparameter, which belongs in params"
        yield f"unknown field {name!r}{hint or f' (known: {names})'}"
    for name in missing:
        yield f"{name} is missing: {_EXPLAINED[name]}"
    yield from _value_problems({**defaults, **given})


_EXPLAINED = {
    "source": "the images, such as source=folder()",
    "params": "the hyperparameters, such as params={'backbone': 'resnet18'}",
}


def _value_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if "source" in values:
        yield from _source_problems("source", values["source"])
    if "params" in values:
        yield from _parameter_problems(values["params"], values["first_trials"])
    for name, (low, high) in _WHOLE_NUMBERS.items():
        yield from _broken(Rule(low, high, integer=True), name, values[name])
    for name in _FRACTIONS:
        yield from _broken(Rule(0.05, 0.5), name, values[name])
    for name, low in (("resize_size", values["image_size"]), ("patience", 1)):
        yield from _optional_number_problems(name, values[name], low)
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            hint = did_you_mean(str(values[name]), choices)
            rule = f"{name} must be {' or '.join(map(repr, choices))}"
            yield f"{rule}, but got {values[name]!r}{hint}"
    for name in _SWITCHES:
        if not isinstance(values[name], bool):
            yield f"{name} must be True or False, but got {values[name]!r}"
    if values["external"] is not None:
        yield from _source_problems("external", values["external"])


def _source_problems(name: str, source: object) -> Iterator[str]:
    if isinstance(source, Source):
        return
    if callable(source) and hasattr(source, "__name__"):
        yield f"{name} must be a source, but got a function: write {source.__name__}()"
    else:
        yield f"{name} must come from spaces.sources, but got {source!r}"


def _parameter_problems(params: object, first_trials: object) -> Iterator[str]:
    if not isinstance(params, Mapping):
        yield (
            "params must be a dict of hyperparameters, such as {'backbone': 'resnet18'}, but got"
            f" {params!r}"
        )
        return
    yield from parameter_problems(params)
    if isinstance(first_trials, Mapping):
        yield f"first_trials must be a tuple of dicts, but got one: write ({first_trials!r},)"
    elif not isinstance(first_trials, tuple | list):
        yield f"first_trials must be a tuple of dicts, but got {first_trials!r}"
    else:
        for index, config in enumerate(first_trials):
            for problem in config_problems(config, params):
                yield f"first_trials[{index}]: {problem}"


def _optional_number_problems(name: str, value: object, low: object) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        yield f"{name} must be a whole number or None, but got {value!r}"
    elif isinstance(low, int) and value < low:
        rule = f"{name} >= {'image_size' if name == 'resize_size' else low}"
        yield f"{rule} must hold, but got {value}{f' < {low}' if name == 'resize_size' else ''}"
    elif name == "resize_size" and value > MAX_RESIZE_SIZE:
        yield f"resize_size <= {MAX_RESIZE_SIZE} must hold, but got {value}"


def _broken(rule: Rule, name: str, value: object) -> Iterator[str]:
    if problem := rule.broken_by(name, value):
        yield problem
