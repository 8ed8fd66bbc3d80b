"""What breaks the rules of a space's parameters, all at once, whatever a parameter's type is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from spaces.conditions import ByValue, Parameter, When, branches_of, have_one_kind, matches
from spaces.rules import RULES, Distribution, Value
from spaces.sources import did_you_mean


def values_of(parameter: Parameter) -> tuple[Value, ...]:
    """Return a parameter's choices, the ends of its range, or its value; those of all branches."""
    return tuple(value for branch in branches_of(parameter) for value in _values_of(branch))


def _values_of(branch: Distribution | Value) -> tuple[Value, ...]:
    if isinstance(branch, CategoricalDistribution):
        return tuple(branch.choices)  # type: ignore[arg-type]
    if isinstance(branch, FloatDistribution | IntDistribution):
        return (branch.low, branch.high)
    return (branch,)


def all_values_of(parameter: Parameter) -> tuple[Value, ...] | None:
    """Return every value that a parameter may have; None for a range of real numbers."""
    values: list[Value] = []
    for branch in branches_of(parameter):
        if isinstance(branch, FloatDistribution):
            return None
        if isinstance(branch, IntDistribution):
            values += range(branch.low, branch.high + 1, branch.step)
        else:
            values += _values_of(branch)
    return tuple(dict.fromkeys(values))


def parameter_problems(params: Mapping[Any, Any]) -> Iterator[str]:
    """Yield how the parameters of a space break the rules."""
    if "backbone" not in params:
        yield "params must name a 'backbone'"
    for name, parameter in params.items():
        if name not in RULES:
            known = ", ".join(RULES)
            yield f"unknown parameter {name!r}{did_you_mean(str(name), RULES)} (known: {known})"
        elif not isinstance(parameter, ByValue | When):
            yield from _branch_problems(name, parameter)
        elif name == "backbone":
            yield "backbone cannot depend on another parameter: the others may depend on it"
        elif problem := _malformed(name, parameter):
            yield problem
        else:
            yield from _dependence_problems(name, parameter, params)


def _branch_problems(name: str, branch: object) -> Iterator[str]:
    if not isinstance(branch, Value | Distribution | None):
        yield (
            f"{name} must be one value or a distribution, such as"
            f" CategoricalDistribution([…]), but got {branch!r}"
        )
        return
    values = (None,) if branch is None else _values_of(branch)
    broken = [RULES[name].broken_by(name, value) for value in values]
    yield from dict.fromkeys(problem for problem in broken if problem)


def _malformed(name: str, parameter: ByValue | When) -> str | None:
    """Return why a `When` or a `ByValue` cannot be read at all."""
    inner: object = parameter
    if isinstance(parameter, When):
        if not isinstance(parameter.condition, Mapping) or not parameter.condition:
            return (
                f"{name}: When needs a dict of conditions, such as {{'freeze_depth': 5}}, but got"
                f" {parameter.condition!r}"
            )
        inner = parameter.parameter
        if isinstance(inner, When):
            return f"{name}: a When cannot hold another: name all conditions in one dict"
    if isinstance(inner, ByValue) and (not isinstance(inner.cases, Mapping) or not inner.cases):
        return (
            f"{name}: ByValue needs a dict of cases, such as {{'resnet18': 1e-3}}, but got"
            f" {inner.cases!r}"
        )
    return None


def _dependence_problems(
    name: str, parameter: ByValue | When, params: Mapping[Any, Any]
) -> Iterator[str]:
    known = {}
    for parent, keys in parameter.parents().items():
        values = _parent_values(params.get(parent))
        if values is None:
            yield f"{name} cannot depend on {parent!r}: {_no_parent(name, parent, params)}"
            continue
        known[parent] = values
        if not keys:
            yield f"{name} depends on {parent}, but names no value of it"
        for key in keys:
            if not any(matches((key,), value) for value in values):
                yield (
                    f"{name} depends on {parent}, which is never {key!r}"
                    f"{did_you_mean(str(key), map(str, values))}"
                )
    branches = parameter.branches()
    broken = [problem for branch in branches for problem in _branch_problems(name, branch)]
    yield from dict.fromkeys(broken)
    ranges = [branch for branch in branches if isinstance(branch, BaseDistribution)]
    if ranges and not have_one_kind(ranges):
        yield (
            f"the ranges of {name} must differ in their ends only, and choices not at all, but got"
            f" {' and '.join(dict.fromkeys(map(str, ranges)))}"
        )
    inner = parameter.parameter if isinstance(parameter, When) else parameter
    if isinstance(inner, ByValue) and inner.parent in known and inner.default is None:
        yield from _missing_cases(name, inner, known[inner.parent])


def _parent_values(parent: object) -> tuple[Value, ...] | None:
    """Return the values of what another parameter may depend on; None where it may not."""
    if isinstance(parent, Value | CategoricalDistribution | IntDistribution):
        return all_values_of(parent)
    return None


def _no_parent(name: str, parent: object, params: Mapping[Any, Any]) -> str:
    """Return why a parameter cannot depend on another."""
    if parent == name:
        return "that is itself"
    if parent not in params:
        return f"it is not a parameter of this space{did_you_mean(str(parent), map(str, params))}"
    if isinstance(params[parent], ByValue | When):
        return "it depends on another parameter itself"
    return "it must have choices, whole numbers or one value"


def _missing_cases(name: str, parameter: ByValue, values: Sequence[Value]) -> Iterator[str]:
    missing = [value for value in values if parameter.case(value) is None]
    if missing:
        names = ", ".join(map(repr, missing))
        yield f"{name} has no case for {parameter.parent} {names}: add it, or give a default"
