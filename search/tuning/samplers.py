"""How the next configuration is proposed: by TPE, at random, or along a grid."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.tuning.ranking import BEST_LOSS, score
from spaces.base import Space, Value

MAX_REMEMBERED = 1000
"""Finished trials that TPE looks at, beside the best; its time grows with them."""

_N_BEST = 25  # what TPE takes for good are a tenth of the trials, at most so many
_N_CANDIDATES = 4  # of which TPE proposes the most promising; Optuna's 24 are greedier
RANDOM_EVERY = 4
"""Every fourth proposal is random: a few hundred validation images cannot tell the best region
from the second best, and TPE alone soon proposes nothing else. BOHB (arXiv 1807.01774) has a share
of random ones, too."""
RANDOM_FRACTION = 0.25  # of the trials are random before TPE takes over, at most 10
_GRID_POINTS = 3  # of each continuous parameter
_DEPTH = "freeze_depth"


def create_sampler(
    name: str,
    space: Space,
    n_trials: int,
    seed: int,
    n_proposed: int = 0,
    memory: dict[int, FrozenTrial] | None = None,
) -> BaseSampler:
    """Create the sampler of a study.

    Args:
        name: "tpe", "random" or "grid".
        space: What is searched.
        n_trials: How many trials are asked for; a share of them is random before TPE begins.
        seed: Of the sampler.
        n_proposed: Trials that the study holds already: a search that is carried on must not
            propose them once more.
        memory: What a sampler works out of the study's finished trials, for the next one of it.
    """
    if name == "grid":
        return Grid({k: _grid_values(d) for k, d in space.distributions.items()}, seed)
    seed = (seed + 1_000_003 * n_proposed) % 2**32
    if name == "random" or n_proposed % RANDOM_EVERY == RANDOM_EVERY - 1:
        return RandomSampler(seed=seed)
    n_random = min(10, max(len(space.first_trials) + 1, round(RANDOM_FRACTION * n_trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPE(space, n_random, seed, {} if memory is None else memory)


class TPE(TPESampler):
    """TPE to which equal accuracies are not equal: the lower validation loss is better.

    Optuna's own counts only the earliest of equals among the good, and keeps away from the others.
    """

    def __init__(
        self, space: Space, n_random: int, seed: int, memory: dict[int, FrozenTrial]
    ) -> None:
        """Begin; after `n_random` trials that ended, proposals are no longer random."""
        super().__init__(
            n_startup_trials=n_random,
            n_ei_candidates=_N_CANDIDATES,
            multivariate=True,
            constant_liar=True,
            seed=seed,
        )
        self._searched = {
            name: distribution
            for name, distribution in sorted(space.distributions.items())
            if not distribution.single()
        }
        self._memory = memory

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is searched: it is known, where Optuna looks through all trials for it."""
        return self._searched

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Propose parameters together."""
        return super().sample_relative(self._scored(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Propose one parameter."""
        return super().sample_independent(
            self._scored(study), trial, param_name, param_distribution
        )

    def _scored(self, study: optuna.Study) -> optuna.Study:
        return cast("optuna.Study", _Scored(study, self._memory))


class _Scored:
    """A study as TPE reads it, with scores in place of accuracies."""

    def __init__(self, study: optuna.Study, memory: dict[int, FrozenTrial]) -> None:
        self._study = study
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        """Return trials in the order of their numbers; of very many the best and the latest."""
        trials = [self._score(trial) for trial in self._study._get_trials(*args, **kwargs)]
        if len(trials) <= MAX_REMEMBERED:
            return trials
        older, latest = trials[:-MAX_REMEMBERED], trials[-MAX_REMEMBERED:]
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        best = {t.number for t in nlargest(_N_BEST, complete, key=lambda t: t.value or 0.0)}
        return [t for t in older if t.number in best or not t.state.is_finished()] + latest

    def _score(self, trial: FrozenTrial) -> FrozenTrial:
        if not trial.state.is_finished():
            return trial
        if trial.number not in self._memory:
            self._memory[trial.number] = _scored(trial)
        return self._memory[trial.number]


def _scored(trial: FrozenTrial) -> FrozenTrial:
    """Return a finished trial whose value, or last epoch's if it was stopped, is a score."""
    loss = trial.user_attrs.get(BEST_LOSS, math.inf)
    scored = copy.copy(trial)
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        scored.value = score(trial.value, loss)
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        last = max(trial.intermediate_values)
        scored.intermediate_values = {last: score(trial.intermediate_values[last], loss)}
    return scored


class BudgetedSampler(BaseSampler):
    """Proposes what another sampler does, frozen at least as deep as there is time for."""

    def __init__(
        self, sampler: BaseSampler, space: Space, min_freeze_depth: Callable[[str], int]
    ) -> None:
        """Begin; `min_freeze_depth` says, of a backbone, the least depth that there is time for."""
        self._sampler = sampler
        self._space = space
        self._min_freeze_depth = min_freeze_depth

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See the other sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose parameters together."""
        params = self._sampler.sample_relative(study, trial, search_space)
        if _DEPTH in params:
            params = {
                **params,
                _DEPTH: self._raise_depth(params[_DEPTH], {**trial.params, **params}),
            }
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
        return self._raise_depth(value, trial.params) if param_name == _DEPTH else value

    def _raise_depth(self, depth: int, params: Mapping[str, Any]) -> int:
        """Return a depth that there is time for, and the deepest where there is for none."""
        chosen = {**self._space.constants, **params}.get("backbone")
        # A backbone that is not drawn yet may be any.
        backbones = self._space.backbones if chosen is None else (str(chosen),)
        least = max(self._min_freeze_depth(name) for name in backbones)
        depths = self._space.freeze_depths
        return max(depth, next((one for one in depths if one >= least), depths[-1]))


class Grid(GridSampler):
    """Every point of a grid once, in a shuffled order, for a study that is asked and told.

    Optuna's own ends `Study.optimize`, which is not used here, and takes no enqueued trial that
    leaves parameters out.
    """

    def __init__(self, values: Mapping[str, Sequence[Value]], seed: int) -> None:
        super().__init__(values, seed=seed)
        self._n_points = math.prod(map(len, values.values()))
        self._random = RandomSampler(seed=seed)

    def is_used_up(self, study: optuna.Study) -> bool:
        """Say whether every point has been begun."""
        return sum("grid_id" in t.system_attrs for t in study.get_trials(deepcopy=False)) >= (
            self._n_points
        )

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a point's value, or a random one for what an enqueued trial leaves out."""
        if "grid_id" not in trial.system_attrs:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Do nothing: whoever asks for trials sees that the grid is used up."""


def _grid_values(distribution: BaseDistribution) -> list[Value]:
    """Return a grid over one parameter: all choices, or evenly spaced values, both ends in."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # type: ignore[arg-type]
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"no grid over {distribution}")
    low, high, step = distribution.low, distribution.high, distribution.step
    shares = [i / (_GRID_POINTS - 1) for i in range(_GRID_POINTS)]
    if step is None:
        between = [
            low * (high / low) ** share if distribution.log else low + share * (high - low)
            for share in shares[1:-1]
        ]
        return list(dict.fromkeys([low, *between, high]))  # the ends exactly, free of rounding
    n_steps = round((high - low) / step)
    few = n_steps < 2 * _GRID_POINTS
    chosen = range(n_steps + 1) if few else [round(share * n_steps) for share in shares]
    return [min(low + i * step, high) for i in chosen]
