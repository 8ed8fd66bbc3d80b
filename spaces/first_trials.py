"""The configurations that a space tries first: what is wrong with them, and how they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna import create_trial
from optuna.distributions import BaseDistribution, CategoricalDistribution

from spaces.conditions import ByValue, Parameter, When, choose, matches
from spaces.parameters import values_of
from spaces.rules import RULES, Distribution, Value
from spaces.sources import did_you_mean

Config = Mapping[str, Value]


def config_problems(config: object, params: Mapping[Any, Any]) -> Iterator[str]:
    """Yield how a configuration lies outside the parameters of a space."""
    if not isinstance(config, Mapping):
        yield f"it must be a dict of hyperparameters, but got {config!r}"
        return
    for name, value in config.items():
        parameter = params.get(name)
        if parameter is None:
            hint = did_you_mean(str(name), map(str, params))
            yield f"{name!r} is not a parameter of this space{hint}"
        elif not is_of_many(config):
            yield from _value_problems(name, value, config, params)
        elif name == "backbone":
            yield from _unmatched(value, params)
        elif not _is_dependent(parameter):
            yield from _value_problems(name, value, config, params)
        elif problem := RULES[name].broken_by(name, value):
            yield problem  # each backbone has its own range, into which the value is moved


def _value_problems(
    name: str, value: object, config: Mapping[Any, Any], params: Mapping[Any, Any]
) -> Iterator[str]:
    """Yield how a value of a configuration lies outside its parameter."""
    parameter, given = params[name], {**_constants(params), **config}
    if isinstance(parameter, ByValue | When):
        if missing := [one for one in parameter.parents() if one not in given]:
            yield f"{name} depends on {' and '.join(missing)}, which it must name, too"
            return
        parameter = choose(parameter, given)
        if parameter is None:
            yield f"{name} = {value!r}, but a trial like it has none: {params[name]}"
            return
    if not isinstance(parameter, BaseDistribution):
        if not isinstance(value, Value) or value != parameter:
            yield f"{name} = {value!r}, but the space fixes it at {parameter!r}"
    elif not contains(parameter, value):
        yield f"{name} = {value!r} is outside {parameter}"


def is_of_many(config: Config) -> bool:
    """Return whether a configuration is for every backbone that its text with `*` stands for."""
    return "*" in str(config.get("backbone", ""))


def _unmatched(pattern: object, params: Mapping[Any, Any]) -> Iterator[str]:
    backbones = values_of(params["backbone"]) if "backbone" in params else ()
    if not any(matches((pattern,), name) for name in backbones):
        hint = did_you_mean(str(pattern), map(str, backbones))
        yield f"no backbone of this space is {pattern!r}{hint}"


def contains(distribution: BaseDistribution, value: object) -> bool:
    """Return whether a value, of any type, is one of a distribution's."""
    try:
        create_trial(value=0.0, params={"x": value}, distributions={"x": distribution})
    except (ValueError, TypeError):
        return False
    return True


def fit_all(configs: Sequence[Config], params: Mapping[str, Parameter]) -> tuple[Config, ...]:
    """Return configurations as a changed space can have them, each once.

    A parameter that the space or the trial no longer has is left out, and a value that is out of
    its range now is moved into it.

    Args:
        configs: Configurations of the space before it was changed.
        params: Its parameters now.
    """
    return tuple(unique([dict(_fit(config, params)) for config in configs]))


def unique(configs: Sequence[Config]) -> list[Config]:
    """Return the first of each of the configurations that are equal."""
    return [one for index, one in enumerate(configs) if one not in configs[:index]]


def of_backbones(
    configs: Sequence[Config], names: Sequence[str], preferred: str | None
) -> list[Config]:
    """Return configurations for a space of some backbones.

    One for many stays where it stands for any of them, and is left out otherwise.

    Args:
        configs: The first trials of the space.
        names: The backbones that it has now.
        preferred: The one that a configuration of another backbone, or of none, is of; None is the
            first, for one that names another.
    """
    kept: list[Config] = []
    for config in configs:
        named = config.get("backbone", None if preferred else names[0])
        if any(matches((named,), name) for name in names):
            kept.append(config)
        elif not is_of_many(config):
            kept.append({**config, "backbone": preferred or names[0]})
    return kept


def expand(
    configs: Sequence[Config], ranking: Sequence[str], params: Mapping[str, Parameter]
) -> tuple[Config, ...]:
    """Return configurations of one backbone each: one for many stands for each that it matches.

    Args:
        configs: The first trials of a space.
        ranking: Its backbones, the best first.
        params: Its parameters.
    """
    expanded: list[Config] = []
    for config in configs:
        names = [one for one in ranking if matches((config.get("backbone"),), one)]
        expanded += [{**config, "backbone": n} for n in names] if is_of_many(config) else [config]
    return fit_all(expanded, params)


def keep_known(config: Config, params: Mapping[str, Parameter]) -> dict[str, Value]:
    """Return what a space can have of a configuration of another space.

    Left out is what the space does not search, or not in the trial's branch, and what is out of
    its range.
    """
    kept: dict[str, Value] = {}
    for name in sorted(config.keys() & params.keys(), key=lambda n: (_is_dependent(params[n]), n)):
        parameter = choose(params[name], {**_constants(params), **kept})
        if isinstance(parameter, BaseDistribution) and contains(parameter, config[name]):
            kept[name] = config[name]
    return kept


def _is_dependent(parameter: Parameter) -> bool:
    return isinstance(parameter, ByValue | When)


def _fit(config: Config, params: Mapping[str, Parameter]) -> Iterator[tuple[str, Value]]:
    given = {**_constants(params), **config}
    for name, value in config.items():
        parameter: Parameter | None = params.get(name)
        if isinstance(parameter, ByValue | When):
            if is_of_many(config):
                yield name, value
                continue
            parameter = choose(parameter, given)
        if isinstance(parameter, Distribution):
            yield name, _nearest(parameter, value)
        elif isinstance(parameter, Value):
            yield name, parameter


def _nearest(distribution: Distribution, value: Value) -> Value:
    """Return a value of a distribution: the given one if it has it, else the nearest end."""
    if isinstance(distribution, CategoricalDistribution) or contains(distribution, value):
        return value
    low, high = distribution.low, distribution.high
    return low if abs(float(value) - low) < abs(float(value) - high) else high


def _constants(params: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: one for name, one in params.items() if isinstance(one, Value)}
