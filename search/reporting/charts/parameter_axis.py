"""The axes of hyperparameters: where a value lies in its range, and which ticks there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from search.reporting.style import shorten_apart
from spaces.rules import Value

MISSING_POSITION = -0.12
"""Position of trials that do not have a parameter, below its axis."""

_MAX_WHOLE_TICKS = 8
_MIN_TICK_DISTANCE = 0.07  # of an axis's length, below which labels would touch


@dataclass(frozen=True)
class Axis:
    """The axis of one parameter, or of an accuracy.

    Attributes:
        name: Name of the parameter.
        values: One per trial; None where it does not have the parameter.
        choices: Choices of a categorical parameter; empty for a number.
        low: Lower end of a number's range.
        high: Upper end of a number's range.
        log: Whether the range is logarithmic.
        integer: Whether the values are whole numbers.
        percent: Whether the values are fractions that are shown as percentages.
    """

    name: str
    values: Sequence[object]
    choices: tuple[object, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    integer: bool = False
    percent: bool = False

    def position(self, value: object) -> float:
        """Return the position of a value, in [0, 1]; that of None is below."""
        if value is None:
            return MISSING_POSITION
        if self.choices:
            last = len(self.choices) - 1
            return self.choices.index(value) / last if last else 0.5
        low, high, number = self.low, self.high, float(str(value))
        if self.log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return a few positions with their labels."""
        placed = [(MISSING_POSITION, "none")] if None in self.values else []
        if self.choices:
            names = shorten_apart([str(choice) for choice in self.choices])
            return [*placed, *zip(map(self.position, self.choices), names, strict=True)]
        for mark in self._marks():
            if not placed or self.position(mark) - placed[-1][0] > _MIN_TICK_DISTANCE:
                text = f"{mark:.1%}" if self.percent else f"{mark:.3g}"
                placed.append((self.position(mark), text))
        return placed

    def _marks(self) -> list[float]:
        """Return the values of the ticks, ascending: both ends and a few between them."""
        low, high = self.low, self.high
        if self.log:
            powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
            return sorted({low, *(10.0**power for power in powers), high})
        if self.integer and high - low <= _MAX_WHOLE_TICKS:
            return [float(number) for number in range(int(low), int(high) + 1)]
        middle = (low + high) / 2
        return [low, round(middle) if self.integer else middle, high]


def parameter_axes(
    distributions: Mapping[str, BaseDistribution], trials: Sequence[Mapping[str, Value]]
) -> list[Axis]:
    """Return an axis for each parameter, with the values of trials.

    Args:
        distributions: The range of each parameter.
        trials: The parameters of each trial.
    """
    columns = []
    for name, distribution in distributions.items():
        values = [trial.get(name) for trial in trials]
        if isinstance(distribution, CategoricalDistribution):
            columns.append(Axis(name, values, choices=tuple(distribution.choices)))
        else:
            bounds: Any = distribution
            integer = isinstance(distribution, IntDistribution)
            columns.append(
                Axis(name, values, (), bounds.low, bounds.high, bounds.log, integer=integer)
            )
    return columns


def focus(scores: Sequence[float]) -> float:
    """Return the lower end of a scale, so that a few poor trials do not flatten the good ones."""
    if not scores:
        return 0.0
    quarter, best = float(np.quantile(scores, 0.25)), max(scores)
    return max(min(scores), quarter - 1.5 * (best - quarter))
