"""Samplers that propose configurations: TPE with some random ones, a Gaussian process, a grid."""

from __future__ import annotations

import itertools
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
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from spaces.base import Space
from spaces.rules import Value

_N_CANDIDATES = 4  # of which TPE proposes the most promising; Optuna's 24 are greedier
RANDOM_EVERY = 4
"""Every fourth proposal is random: a few hundred validation images cannot tell the best region
from the second best, and TPE alone soon proposes nothing else. BOHB (arXiv 1807.01774) draws a
fraction of its configurations at random, too."""
RANDOM_FRACTION = 0.25  # of the trials are random before a model proposes, at most 10
_GRID_POINTS = 3  # of each continuous parameter
_DEPTH = "freeze_depth"


def create_sampler(
    name: str, space: Space, n_trials: int, seed: int, n_proposed: int = 0
) -> BaseSampler:
    """Create the sampler of one trial.

    Args:
        name: "tpe", "gp", "random" or "grid". The points of a grid are enqueued (see
            `grid_points`): its sampler draws, at random, what the space's first trials leave open.
        space: What is searched.
        n_trials: Trials of the whole search; a fraction of them is random before a model begins.
        seed: Seed of the search.
        n_proposed: Trials that the study holds already, which seed the sampler as well: so a
            resumed search proposes what it would have proposed without the break.
    """
    seed = (seed + 1_000_003 * n_proposed) % 2**32
    is_random = name == "tpe" and n_proposed % RANDOM_EVERY == RANDOM_EVERY - 1
    if name not in ("tpe", "gp") or is_random:
        return RandomSampler(seed=seed)
    n_random = min(10, max(len(space.first_trials) + 1, round(RANDOM_FRACTION * n_trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return _GP(space, n_startup_trials=n_random, seed=seed)
        return _TPE(
            space,
            n_startup_trials=n_random,
            n_ei_candidates=_N_CANDIDATES,
            multivariate=True,
            constant_liar=True,
            seed=seed,
        )


def draw_params(trial: optuna.Trial, space: Space) -> None:
    """Draw the parameters that a trial has not drawn yet, those that depend on others last."""
    for name in space.draw_order:
        match space.parameter(name, trial.params):
            case CategoricalDistribution(choices=choices):
                trial.suggest_categorical(name, choices)
            case IntDistribution(low=low, high=high, step=step, log=log):
                trial.suggest_int(name, low, high, step=step, log=log)
            case FloatDistribution(low=low, high=high, step=step, log=log):
                trial.suggest_float(name, low, high, step=step, log=log)


class _TPE(TPESampler):
    """TPE over a space that is known: Optuna's own looks through all trials for it, each time.

    What every trial draws from one range is proposed together, as by Optuna's `group=True`. What
    depends on others is drawn afterwards, by itself, in the range of the trial's own branch, from
    all trials that have it: a joint model over the ranges of all branches proposes values that are
    in none of the trial's own, and finds less in 16 and in 40 trials.
    """

    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        self._joint = _joint_distributions(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._joint


class _GP(GPSampler):
    """Expected improvement by a Gaussian process, over a space that is known.

    It learns from complete trials alone, as Optuna gives it no others; trials that run count as
    points not to propose again. What depends on others is drawn at random.
    """

    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        self._joint = _joint_distributions(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._joint


def _joint_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return what every trial draws from one range."""
    return {
        name: distribution
        for name, distribution in sorted(space.distributions.items())
        if name not in space.dependent and not distribution.single()
    }


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
        return nearest_depth(depth, params, self._space, self._lengths)


def nearest_depth(
    depth: int,
    params: Mapping[str, Any],
    space: Space,
    lengths: Callable[[str], Mapping[int, int]],
) -> int:
    """Return the freeze depth nearest to one that there is time to train; the deeper one of two.

    Args:
        depth: A freeze depth.
        params: Parameters of the trial that are decided; maybe without a backbone.
        space: What is searched.
        lengths: See `BudgetedSampler`.
    """
    drawn = {**space.constants, **params}.get("backbone")
    # A backbone that is not drawn yet may be any.
    backbones = space.backbones if drawn is None else (str(drawn),)
    allowed = set.intersection(*(set(lengths(name)) for name in backbones))
    depths = allowed & set(space.freeze_depths) or {space.freeze_depths[-1]}
    return min(depths, key=lambda one: (abs(one - depth), -one))


def grid_points(space: Space, seed: int) -> Iterator[dict[str, Value]]:
    """Yield every point of the grid over a space once, in an order that the seed decides."""
    grids = list(_grids(space))
    shapes = [tuple(map(len, grid.values())) for grid in grids]
    starts = np.cumsum([0, *map(math.prod, shapes)])
    for point in np.random.default_rng(seed).permutation(starts[-1]):
        which = int(np.searchsorted(starts, point, side="right")) - 1
        grid, shape = grids[which], shapes[which]
        indices = np.unravel_index(point - starts[which], shape) if shape else ()
        yield {name: grid[name][i] for name, i in zip(grid, indices, strict=True)}


def _grids(space: Space) -> Iterator[dict[str, list[Value]]]:
    """Yield the grids that a space's is made of: one for each choice of what others depend on."""
    parents = [name for name in space.distributions if name in space.parents]
    values = [_grid_values(space.distributions[name]) for name in parents]
    for chosen in itertools.product(*values):
        fixed = dict(zip(parents, chosen, strict=True))
        ranges = {name: space.parameter(name, fixed) for name in space.distributions}
        yield {
            name: [fixed[name]] if name in fixed else _grid_values(one)
            for name, one in ranges.items()
            if isinstance(one, BaseDistribution)
        }


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
