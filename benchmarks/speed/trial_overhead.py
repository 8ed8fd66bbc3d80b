"""Measure what a trial costs in addition to its training, against stock Ray Tune (at most 0.1 s).

    python -m benchmarks.speed.trial_overhead [--quick] [--trials 100]

Ours: `search.tuning.tune` with its own searcher, ASHA, reused workers, and a study that is on disk
after every epoch. Stock: a class trainable, OptunaSearch and ASHA, once with `reuse_actors=True`
and once with an actor per trial, which is Tune's default; its study is in memory, and it runs
without loggers and experiment checkpoints. A trial takes one step that does nothing. What is
quoted is seconds per trial, from the end of the second trial to the end of the last; one after the
other shows what a trial costs, several in parallel what a search pays for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import search.tuning.tune
from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress
from benchmarks.harness.simulated_trials import SimulatedContext, SimulatedTrial
from search.cluster.session import configure_ray, ray_session
from search.tuning.asha import REDUCTION_FACTOR
from search.tuning.checkpoints import start_checkpoint_store
from search.tuning.study import open_storage
from search.tuning.tune import SearchPlan, run_trials
from spaces.base import Space, load_space
from trainables.trial_result import TrialResult

import numpy as np  # isort: skip
from ray import tune  # isort: skip

N_WARM_UP = 2
_N_TRIALS = {"full": 100, "quick": 20, "smoke": 4}


@dataclass
class Clock:
    """Records when trials start and end, and how many epochs each had; a `TrialCallback`."""

    started: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    params: dict[int, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self.started[number] = time.time()
        self.params[number] = params

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self.epochs[number] = self.epochs.get(number, 0) + 1

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """See `search.tuning.trial_events.TrialCallback`."""
        self.ended[number] = time.time()
        self.states[state] = self.states.get(state, 0) + 1

    @property
    def seconds_a_trial(self) -> float:
        """From the end of the last warm-up trial to the end of the last trial, a trial."""
        ends = sorted(self.ended.values())
        return (ends[-1] - ends[N_WARM_UP - 1]) / (len(ends) - N_WARM_UP)

    @property
    def gaps(self) -> list[float]:
        """Seconds from one trial's end to the next one's, without the warm-up."""
        ends = sorted(self.ended.values())[N_WARM_UP - 1 :]
        return [b - a for a, b in pairwise(ends)]


@contextmanager
def simulated_trials() -> Any:
    """Let `run_trials` run simulated trials instead of trainings."""
    with mock.patch.object(search.tuning.tune, "ImageTrial", SimulatedTrial):
        yield


def run_ours(
    space: Space,
    context: SimulatedContext,
    n_trials: int,
    concurrent: int,
    folder: Path,
    callbacks: Sequence[Any],
) -> None:
    """Run simulated trials through everything that a real search has."""
    space = replace(space, epochs=context.epochs, trials=n_trials)
    trials = folder.absolute() / "trials"
    plan = SearchPlan(
        n_trials=n_trials,
        sampler="tpe",
        scheduler="asha",
        interrupted=lambda: False,
        time_is_up=lambda: False,
        max_concurrent=concurrent,
        gpu_fraction=dict.fromkeys(space.backbones, 0.0),
    )
    storage = open_storage(folder)
    checkpoints = start_checkpoint_store(trials, space.keep_checkpoints, {})
    rows = {"train": np.arange(8), "val": np.arange(8)}
    with simulated_trials():
        run_trials(plan, storage, space, context, rows, checkpoints, trials, callbacks)


def main() -> None:
    """Measure both sides, and report."""
    arguments = parse()
    space = load_space(ROOT / "spaces" / "caltech.py")
    report = Report("trial_overhead", "Seconds that a trial costs in addition to its training.")
    n_trials = arguments.trials or _N_TRIALS[arguments.mode]
    rows: list[dict[str, Any]] = []
    configure_ray()
    with ray_session(None):
        for concurrent in (1, 2) if arguments.mode != "smoke" else (1,):
            for side, run in SIDES.items():
                log_progress(f"{side}: {n_trials} trials, {concurrent} in parallel")
                rows.append(_row(side, concurrent, run(space, n_trials, concurrent)))
    report.tables[f"A trial that does nothing, after {N_WARM_UP} to warm up"] = rows
    for concurrent in dict.fromkeys(row["in parallel"] for row in rows):
        seconds = {r["side"]: r["seconds/trial"] for r in rows if r["in parallel"] == concurrent}
        ours, what = seconds.pop("ours"), f"{concurrent} in parallel"
        report.ratios.append(Ratio(f"seconds per trial, ours, {what}", ours, 0.1, at_least=False))
        report.ratios += [
            Ratio(f"seconds per trial, {side} over ours, {what}", stock / ours)
            for side, stock in seconds.items()
        ]
    report.publish(arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--trials", type=int, metavar="N", help="of each side (default: 100)")
    arguments = parser.parse_args()
    if arguments.trials is not None and arguments.trials <= N_WARM_UP + 1:
        parser.error(f"--trials must be above {N_WARM_UP + 1}, but got {arguments.trials}")
    return arguments


def _time_ours(space: Space, n_trials: int, concurrent: int) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        context = SimulatedContext(epochs=1, median_epoch_seconds=0.0)
        run_ours(space, context, n_trials, concurrent, Path(folder), [clock])
    return clock


def _time_stock(space: Space, n_trials: int, concurrent: int, reuse_actors: bool) -> Clock:
    """Run the same number of no-op trials as Tune's own documentation shows."""
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    clock = Clock()
    searcher = OptunaSearch(space=dict(space.distributions), metric="accuracy", mode="max", seed=0)
    with tempfile.TemporaryDirectory() as folder:
        tune.run(
            tune.with_resources(StockTrial, {"cpu": 1}),
            search_alg=searcher,
            scheduler=ASHAScheduler(
                metric="accuracy",
                mode="max",
                max_t=1,
                reduction_factor=REDUCTION_FACTOR,
            ),
            num_samples=n_trials,
            max_concurrent_trials=concurrent,
            reuse_actors=reuse_actors,
            storage_path=folder,
            callbacks=[_ClockCallback(clock)],
            verbose=0,
        )
    return clock


class StockTrial(tune.Trainable):
    """A class trainable that takes one step."""

    def step(self) -> dict[str, Any]:
        """Report something."""
        return {"accuracy": 0.5, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this actor."""
        return True


class _ClockCallback(tune.Callback):
    """Notes when stock trials end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._clock.trial_ended(len(self._clock.ended), "complete", TrialResult())


SIDES: dict[str, Callable[[Space, int, int], Clock]] = {
    "ours": _time_ours,
    "stock, actors reused": partial(_time_stock, reuse_actors=True),
    "stock, an actor per trial": partial(_time_stock, reuse_actors=False),
}


def _row(side: str, concurrent: int, clock: Clock) -> dict[str, Any]:
    ends = sorted(clock.ended.values())
    return {
        "side": side,
        "in parallel": concurrent,
        "trials": len(ends),
        "seconds/trial": clock.seconds_a_trial,
        "median gap": median(clock.gaps),
        "slowest gap": max(clock.gaps),
        "all": ends[-1] - ends[0],
    }


if __name__ == "__main__":
    main()
