"""Samplers that propose configurations: TPE with random proposals among its own, random, a grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from spaces.base import Space
from spaces.rules import Value

_N_CANDIDATES = 4  # of which TPE proposes the most promising; Optuna's 24 are greedier
RANDOM_EVERY = 4
"""Every fourth proposal is random: a few hundred validation images cannot tell the best region
from the second best, and TPE alone soon proposes nothing else. BOHB (arXiv 1807.01774) draws a
fraction of its configurations at random, too."""
RANDOM_FRACTION = 0.25  # of the trials are random before TPE takes over, at most 10
_GRID_POINTS = 3  # of each continuous parameter
_DEPTH = "freeze_depth"


def create_sampler(
    name: str, space: Space, n_trials: int, seed: int, n_proposed: int = 0
) -> BaseSampler:
    """Create the sampler of one trial.

    Args:
        name: "tpe", "random" or "grid". The points of a grid are enqueued (see `grid_points`): its
            sampler draws, at random, what the space's first trials leave open.
        space: What is searched.
        n_trials: Trials of the whole search; a fraction of them is random before TPE begins.
        seed: Seed of the search.
        n_proposed: Trials that the study holds already, which seed the sampler as well: so a
            resumed search proposes what it would have proposed without the break.
    """
    seed = (seed + 1_000_003 * n_proposed) % 2**32
    if name != "tpe" or n_proposed % RANDOM_EVERY == RANDOM_EVERY - 1:
        return RandomSampler(seed=seed)
    n_random = min(10, max(len(space.first_trials) + 1, round(RANDOM_FRACTION * n_trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _TPE(
            space,
            n_startup_trials=n_random,
            n_ei_candidates=_N_CANDIDATES,
            multivariate=True,
            constant_liar=True,
            seed=seed,
        )


class _TPE(TPESampler):
    """TPE over a space that is known: Optuna's own looks through all trials for it, each time."""

    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        self._searched = {
            name: distribution
            for name, distribution in sorted(space.distributions.items())
            if not distribution.single()
        }

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._searched


class BudgetedSampler(BaseSampler):
    """Wrap a sampler; change its freeze depth to the nearest that the time budget allows."""

    def __init__(
        self,
        sampler: BaseSampler,
        space: Space,
        lengths: Callable[[str], Mapping[int, int]],
    ) -> None:
        """Wrap a sampler.

        Args:
            sampler: What proposes.
            space: What is searched.
            lengths: Returns, for a backbone, the depths that there is time to train, with their
                epochs.
        """
        self._sampler = sampler
        self._space = space
        self._lengths = lengths

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See the wrapped sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose parameters together."""
        params = self._sampler.sample_relative(study, trial, search_space)
        if _DEPTH in params:
            depth = self._allowed_depth(params[_DEPTH], {**trial.params, **params})
            params = {**params, _DEPTH: depth}
        return params

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Propose one parameter."""
        value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._allowed_depth(value, trial.params) if param_name == _DEPTH else value

    def _allowed_depth(self, depth: int, params: Mapping[str, Any]) -> int:
        """Return the nearest depth that there is time to train; the deeper one of two."""
        drawn = {**self._space.constants, **params}.get("backbone")
        # A backbone that is not drawn yet may be any.
        backbones = self._space.backbones if drawn is None else (str(drawn),)
        allowed = set.intersection(*(set(self._lengths(name)) for name in backbones))
        depths = allowed & set(self._space.freeze_depths) or {self._space.freeze_depths[-1]}
        return min(depths, key=lambda one: (abs(one - depth), -one))


def grid_points(space: Space, seed: int) -> Iterator[dict[str, Value]]:
    """Yield every point of the grid over a space once, in an order that the seed decides."""
    values = {name: _grid_values(d) for name, d in space.distributions.items()}
    shape = tuple(map(len, values.values()))
    for point in np.random.default_rng(seed).permutation(math.prod(shape)):
        indices = np.unravel_index(point, shape) if shape else ()
        yield {name: values[name][i] for name, i in zip(values, indices, strict=True)}


def _grid_values(distribution: BaseDistribution) -> list[Value]:
    """Return a grid over one parameter: all choices, or evenly spaced values, both ends in."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # type: ignore[arg-type]
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"no grid over {distribution}")
    low, high, step = distribution.low, distribution.high, distribution.step
    fractions = [i / (_GRID_POINTS - 1) for i in range(_GRID_POINTS)]
    if step is None:
        between = [
            low * (high / low) ** fraction if distribution.log else low + fraction * (high - low)
            for fraction in fractions[1:-1]
        ]
        return list(dict.fromkeys([low, *between, high]))  # the ends exactly, free of rounding
    n_steps = round((high - low) / step)
    few = n_steps < 2 * _GRID_POINTS
    chosen = range(n_steps + 1) if few else [round(f * n_steps) for f in fractions]
    return [min(low + i * step, high) for i in chosen]
