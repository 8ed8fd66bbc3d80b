"""Parameters that depend on others: searched under a condition, or in a range for each value.

ConfigSpace calls them conditional hyperparameters, Optuna a dynamic search space. What a parameter
depends on, its parent, is one of few distinct values and depends on nothing itself, so a trial that
draws its parents first knows what is left to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from spaces.rules import Distribution, Value


@dataclass(frozen=True)
class ByValue:
    """A parameter whose range depends on the value of another.

    `ByValue("backbone", {"squeezenet*": FloatDistribution(1e-4, 1e-2, log=True)}, default=1e-4)`
    """

    parent: str
    """The parameter that decides."""
    cases: Mapping[Value, Distribution | Value]
    """By value of the parent: a distribution, or a constant. A text with `*` stands for all names
    that match it; of several cases the first applies."""
    default: Distribution | Value | None = None
    """For all other values of the parent; None where there is no other."""

    def __str__(self) -> str:
        cases = [f"{in_words(one)} for {self.parent} {key}" for key, one in self.cases.items()]
        other = [] if self.default is None else [f"else {in_words(self.default)}"]
        return "; ".join([*cases, *other])

    def parents(self) -> dict[str, tuple[Value, ...]]:
        """Return the parent, and the values of it that are named."""
        return {self.parent: tuple(self.cases)}

    def branches(self) -> tuple[Distribution | Value, ...]:
        """Return everything that the parameter may be."""
        return (*self.cases.values(), *(() if self.default is None else (self.default,)))

    def case(self, value: Value) -> Distribution | Value | None:
        """Return what the parameter is for a value of its parent; None where that is missing."""
        found = (branch for key, branch in self.cases.items() if matches((key,), value))
        return next(found, self.default)

    def choose(self, params: Mapping[str, Value]) -> Distribution | Value | None:
        """See the function of this name."""
        return self.case(params[self.parent]) if self.parent in params else None

    def narrow(self, name: str, values: Sequence[Value]) -> ByValue | Distribution | Value:
        """See the function of this name."""
        if name != self.parent:
            return self
        chosen = [self.case(value) for value in values]
        if chosen[0] is not None and all(branch == chosen[0] for branch in chosen):
            return chosen[0]
        used = {
            key: branch
            for key, branch in self.cases.items()
            if any(matches((key,), value) for value in values)
        }
        return replace(self, cases=used)


@dataclass(frozen=True)
class When:
    """A parameter that a trial has only where others have certain values.

    `When({"freeze_depth": 5}, CategoricalDistribution([0, 256]))`; elsewhere it has its default.
    """

    condition: Mapping[str, Value | tuple[Value, ...] | list[Value]]
    """By parent, the value that it must have, or the values of which it must have one. A text with
    `*` stands for all names that match it."""
    parameter: Distribution | Value | ByValue
    """What the parameter is then."""

    def __str__(self) -> str:
        terms = [f"{name} is {' or '.join(map(str, v))}" for name, v in self._terms().items()]
        return f"{in_words(self.parameter)} where {' and '.join(terms)}"

    def _terms(self) -> dict[str, tuple[Value, ...]]:
        return {
            name: tuple(one) if isinstance(one, tuple | list) else (one,)
            for name, one in self.condition.items()
        }

    def parents(self) -> dict[str, tuple[Value, ...]]:
        """Return each parent, and the values of it that are named."""
        inner = self.parameter.parents() if isinstance(self.parameter, ByValue) else {}
        terms = self._terms()
        return {**terms, **{name: (*terms.get(name, ()), *keys) for name, keys in inner.items()}}

    def branches(self) -> tuple[Distribution | Value, ...]:
        """Return everything that the parameter may be."""
        return branches_of(self.parameter)

    def choose(self, params: Mapping[str, Value]) -> Distribution | Value | None:
        """See the function of this name."""
        holds = all(n in params and matches(keys, params[n]) for n, keys in self._terms().items())
        return choose(self.parameter, params) if holds else None

    def narrow(self, name: str, values: Sequence[Value]) -> Parameter | None:
        """See the function of this name; None where the condition can no longer hold."""
        terms, inner = self._terms(), self.parameter
        if isinstance(inner, ByValue):
            inner = inner.narrow(name, values)
        if name in terms:
            holding = [value for value in values if matches(terms[name], value)]
            if not holding:
                return None
            terms[name] = tuple(holding)
            if len(holding) == len(values):
                del terms[name]
        return When(terms, inner) if terms else inner


Parameter = Distribution | Value | ByValue | When


def in_words(parameter: Parameter) -> str:
    """Describe a parameter: "0.0001 to 0.1, log scale", "adam or sgd", of a constant its value."""
    if isinstance(parameter, CategoricalDistribution):
        return " or ".join(map(str, parameter.choices))
    if isinstance(parameter, FloatDistribution | IntDistribution):
        return f"{parameter.low:g} to {parameter.high:g}{', log scale' if parameter.log else ''}"
    return str(parameter)


def branches_of(parameter: Parameter) -> tuple[Distribution | Value, ...]:
    """Return everything that a parameter may be: itself, unless it depends on others."""
    return parameter.branches() if isinstance(parameter, ByValue | When) else (parameter,)


def choose(parameter: Parameter, params: Mapping[str, Value]) -> Distribution | Value | None:
    """Return what a parameter is in a trial.

    Args:
        parameter: Any.
        params: The trial's parameters so far, constants included.

    Returns:
        A distribution, a constant, or None: the trial does not have it, or a parent is not known.
    """
    return parameter.choose(params) if isinstance(parameter, ByValue | When) else parameter


def narrow(
    params: Mapping[str, Parameter], name: str, values: Sequence[Value]
) -> dict[str, Parameter]:
    """Return the parameters of a space in which one of them has only some values.

    What no longer depends on it is a plain parameter; what no trial can have is left out.

    Args:
        params: The parameters of the space.
        name: The one that is narrowed.
        values: Those that it may have, at least one.
    """
    narrowed = {
        one: parameter.narrow(name, values) if isinstance(parameter, ByValue | When) else parameter
        for one, parameter in params.items()
    }
    return {one: parameter for one, parameter in narrowed.items() if parameter is not None}


def matches(keys: Sequence[object], value: Value) -> bool:
    """Return whether one of some keys is a value, or a text with `*` that stands for it."""
    return any(_is_match(key, value) for key in keys)


def _is_match(key: object, value: Value) -> bool:
    if isinstance(key, str) and isinstance(value, str):
        return fnmatchcase(value, key) if "*" in key else key == value
    if not isinstance(key, Value) or isinstance(key, bool) is not isinstance(value, bool):
        return False
    return key == value


def have_one_kind(distributions: Sequence[BaseDistribution]) -> bool:
    """Return whether ranges differ in their ends at most, and choices not at all.

    Optuna records all of them under one name, and refuses others.
    """
    first = distributions[0]
    for other in distributions:
        if type(other) is not type(first):
            return False
        if isinstance(other, CategoricalDistribution) and other != first:
            return False
        if getattr(other, "log", False) is not getattr(first, "log", False):
            return False
    return True


def join(distributions: Sequence[BaseDistribution]) -> BaseDistribution:
    """Return the least range that holds all of some ranges of one kind."""
    first = distributions[0]
    ranges = [d for d in distributions if isinstance(d, FloatDistribution | IntDistribution)]
    if not ranges or all(other == first for other in distributions):
        return first
    low, high = min(one.low for one in ranges), max(one.high for one in ranges)
    if isinstance(first, IntDistribution):
        return IntDistribution(int(low), int(high), log=first.log)
    return FloatDistribution(low, high, log=ranges[0].log)
