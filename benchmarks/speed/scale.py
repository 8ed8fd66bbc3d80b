"""1,000 simulated trials on 64 logical CPUs take at most 1.2 × the ideal makespan.

    python -m benchmarks.speed.scale [--quick] [--trials 1000] [--workers 64] [--profile]
    python -m benchmarks.speed.scale --workers 64 256 512 --workers-per-process 64 --epoch-seconds 5

Workers sleep through their epochs (0.2 s to 2 s, the lengths of real ones scaled down) and report
recorded learning curves, of 8 epochs; everything else is real: `search.tuning.tune` with its
searcher, journal, ASHA and reused workers. The ideal is a list schedule of the very epochs that
were run: each worker takes the next trial the moment it is free. The start of the workers is timed
apart: the first trial of each waits until all have come. What the controller, the checkpoint store
and Ray's own processes take is sampled as it goes, and shows what saturates first.

A worker is a process; with `--workers-per-process N`, N workers share one, since a small machine
has no memory for hundreds of processes (see `simulated_trials.share_processes`).

`--profile` runs the controller under cProfile (slower) and prints where its time goes.

The module is long because the ideal schedule and the sampling of processes belong to one run.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import io
import os
import pstats
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.logical_cpus import start_ray  # isort: skip  # quiets Ray

from benchmarks.harness.reporting import ROOT, Ratio, Report, command_line, log_progress
from benchmarks.harness.simulated_trials import (
    SimulatedContext,
    StartBarrier,
    epoch_seconds,
    recorded_curves,
    share_processes,
)
from benchmarks.speed.trial_overhead import Clock, run_ours
from spaces.base import load_space

import ray  # isort: skip

_OBJECT_STORE_BYTES = 256 * 2**20
_PROFILE_LINES = 40
_SIZES = {"full": (1000, 64, 1.0), "quick": (200, 16, 0.5), "smoke": (6, 2, 0.05)}
"""Trials, workers, and the median seconds per epoch."""
_TRIALS_PER_WORKER = 3
"""Where several numbers of workers are compared."""
_OTHERS = {"checkpoints": "ray::CheckpointStore", "gcs": "gcs_server", "raylet": "raylet"}
"""What else the head runs, by what its command line holds."""


class Sampler:
    """Samples the head's CPU time and memory once a second, in a thread of its own."""

    def __init__(self, clock: Clock) -> None:
        self.samples: list[dict[str, float]] = []
        self._clock = clock
        self._others: dict[str, psutil.Process] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample until the block ends."""
        self._thread.start()
        yield
        self._stop.set()
        self._thread.join()

    def at(self, n_ended: int) -> dict[str, float]:
        """Return the first sample with so many trials ended, or the last."""
        found = (sample for sample in self.samples if sample["trials_ended"] >= n_ended)
        return next(found, self.samples[-1])

    def since(self, moment: float) -> dict[str, float]:
        """Return the first sample after a moment on the machine's clock, or the last."""
        return next((s for s in self.samples if s["at"] >= moment), self.samples[-1])

    def _run(self) -> None:
        started = time.time()
        while True:
            self.samples.append(
                {
                    "at": time.time(),
                    "seconds": time.time() - started,
                    "trials_ended": len(self._clock.ended),
                    "epochs": sum(list(self._clock.epochs.values())),
                    "cpu_seconds": time.process_time(),
                    "rss_mb": _rss_mb(),
                    **{f"{name}_cpu_seconds": self._cpu_seconds(name) for name in _OTHERS},
                }
            )
            if self._stop.wait(1.0):
                return

    def _cpu_seconds(self, name: str) -> float:
        if name not in self._others:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if _OTHERS[name] in process.cmdline()[0]:
                        self._others[name] = process
        if name not in self._others:
            return 0.0
        try:
            times = self._others[name].cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)


@dataclass(frozen=True)
class Searched:
    """A simulated search, and what it took.

    Attributes:
        context: What its trials shared.
        clock: When they started and ended.
        sampler: What the head did meanwhile.
        n_workers: How many simulated workers there were.
        started, opened, returned: When the command was given, all workers were there, and the
            search was over, on the machine's clock.
    """

    context: SimulatedContext
    clock: Clock
    sampler: Sampler
    n_workers: int
    started: float
    opened: float
    returned: float

    @property
    def durations(self) -> list[float]:
        """Seconds of each trial, as trained."""
        epochs = self.clock.epochs
        return [epochs[number] * epoch_seconds(self.context, number) for number in sorted(epochs)]

    @property
    def makespan(self) -> float:
        """Seconds from the moment that all workers were there to the last trial's end."""
        return max(self.clock.ended.values()) - self.opened

    def cpu_seconds(self, whose: str = "") -> float:
        """Return what the controller, or another process of the head, took in the makespan."""
        key = f"{whose}_cpu_seconds" if whose else "cpu_seconds"
        last = self.sampler.at(len(self.clock.ended))
        return last[key] - self.sampler.since(self.opened)[key]


def main() -> None:
    """Run the simulated searches, and report."""
    arguments = parse()
    report = Report("scale", "A search of simulated trials over its ideal makespan.")
    profile = cProfile.Profile() if arguments.profile else None
    rows = []
    for n_workers in arguments.workers:
        n_trials = arguments.trials or _TRIALS_PER_WORKER * n_workers
        log_progress(f"{n_trials} trials on {n_workers} logical CPUs; the workers start")
        done = search(
            n_trials, n_workers, arguments.workers_per_process, arguments.epoch_seconds, profile
        )
        rows.append(row_of(done))
        fill(report, done)
    if len(rows) > 1:
        report.tables = {"By simulated workers": rows, **report.tables}
    report.publish(arguments)
    if profile:
        print(f"\n{_describe_profile(profile)}")


def search(
    n_trials: int,
    n_workers: int,
    workers_per_process: int,
    median_epoch_seconds: float,
    profile: cProfile.Profile | None,
) -> Searched:
    """Run one simulated search."""
    n_epochs = len(recorded_curves()[0].accuracy)
    space = replace(load_space(ROOT / "spaces" / "caltech.py"), epochs=n_epochs)
    clock = Clock()
    sampler = Sampler(clock)
    if workers_per_process > 1:  # Ray starts a process for each of the logical CPUs otherwise
        os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
    start_ray(n_workers, _OBJECT_STORE_BYTES)
    try:
        barrier = ray.remote(num_cpus=0)(StartBarrier).remote(n_workers)
        context = SimulatedContext(space.epochs, median_epoch_seconds, barrier, n_workers)
        started = time.time()
        shared_processes = (
            share_processes(n_workers, workers_per_process)
            if workers_per_process > 1
            else nullcontext()
        )
        with tempfile.TemporaryDirectory() as folder, sampler.running(), shared_processes:
            if profile:
                profile.enable()
            run_ours(space, context, n_trials, n_workers, Path(folder), [clock])
            if profile:
                profile.disable()
        returned, opened = time.time(), ray.get(barrier.opened_at.remote())
    finally:
        ray.shutdown()
    return Searched(context, clock, sampler, n_workers, started, opened, returned)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help=f"default: 1000; {_TRIALS_PER_WORKER} a worker where --workers has several numbers",
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="logical CPUs (default: 64)"
    )
    parser.add_argument("--epoch-seconds", type=float, metavar="S", help="median (default: 1)")
    parser.add_argument(
        "--workers-per-process", type=int, default=1, metavar="N", help="(default: 1)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="show where the controller's time goes"
    )
    arguments = parser.parse_args()
    n_trials, n_workers, seconds = _SIZES[arguments.mode]
    arguments.workers = arguments.workers or [n_workers]
    arguments.epoch_seconds = arguments.epoch_seconds or seconds
    if arguments.trials is None and len(arguments.workers) == 1:
        arguments.trials = n_trials
    if arguments.trials is not None and arguments.trials < max(arguments.workers):
        parser.error(f"--trials must be at least --workers, {max(arguments.workers)}")
    return arguments


def list_schedule(durations: Iterable[float], n_workers: int) -> float:
    """Return the makespan when each worker takes the next job the moment it is free."""
    free_at = [0.0] * n_workers
    for seconds in durations:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def row_of(done: Searched) -> dict[str, Any]:
    """Sum a search up: how near it came to the ideal, and what the head was busy with."""
    ideal = list_schedule(done.durations, done.n_workers)
    n_epochs = sum(done.clock.epochs.values())
    return {
        "workers": done.n_workers,
        "trials": len(done.clock.ended),
        "epochs": n_epochs,
        "epochs/s": n_epochs / done.makespan,
        "over the ideal": done.makespan / ideal,
        "controller CPU %": 100 * done.cpu_seconds() / done.makespan,
        **{f"{name} CPU %": 100 * done.cpu_seconds(name) / done.makespan for name in _OTHERS},
        "CPU ms/epoch": 1000 * done.cpu_seconds() / n_epochs,
        "memory MB": max(sample["rss_mb"] for sample in done.sampler.samples),
    }


def fill(report: Report, done: Searched) -> None:
    """Add a search to the report."""
    ideal = list_schedule(done.durations, done.n_workers)
    n_epochs, n_trials = sum(done.clock.epochs.values()), len(done.clock.ended)
    cpu_seconds, makespan = done.cpu_seconds(), done.makespan
    named = f"{done.n_workers} workers"
    report.tables[f"Makespan, {named}"] = [
        {"what": "all workers started", "seconds": done.opened - done.started},
        {"what": "ideal (list schedule)", "seconds": ideal},
        {
            "what": "lower bound (work over workers)",
            "seconds": sum(done.durations) / done.n_workers,
        },
        {"what": "measured, from all started to the last trial's end", "seconds": makespan},
        {
            "what": "taking the workers down",
            "seconds": done.returned - max(done.clock.ended.values()),
        },
        {"what": "controller's CPU time in it", "seconds": cpu_seconds},
        {"what": "controller's CPU time a trial", "seconds": cpu_seconds / n_trials},
        {"what": "controller's CPU time an epoch", "seconds": cpu_seconds / n_epochs},
    ]
    first = done.sampler.since(done.opened)
    report.tables[f"Controller over time, {named}, from all started"] = [
        _moment(done.sampler, first, round(n_trials * part)) for part in (0.1, 0.25, 0.5, 0.75, 1.0)
    ]
    target = 1.2 if done.n_workers <= _SIZES["full"][1] else None
    report.ratios += [
        Ratio(f"makespan over the ideal, {named}", makespan / ideal, target, at_least=False),
        Ratio(f"controller's CPU time over the makespan, {named}", cpu_seconds / makespan),
    ]
    states = ", ".join(f"{n} {state}" for state, n in sorted(done.clock.states.items()))
    report.notes.append(
        f"{n_trials} trials ({states}), {n_epochs} epochs of"
        f" {done.context.median_epoch_seconds:g} s"
        f" (median), {named} on {len(os.sched_getaffinity(0))} cores:"
        f" {n_epochs / makespan:.1f} results a second"
    )


def _moment(sampler: Sampler, first: dict[str, float], n_ended: int) -> dict[str, Any]:
    sample = sampler.at(n_ended)
    seconds = sample["at"] - first["at"]
    cpu_seconds = sample["cpu_seconds"] - first["cpu_seconds"]
    return {
        "trials ended": int(sample["trials_ended"]),
        "seconds": seconds,
        "epochs/s so far": (sample["epochs"] - first["epochs"]) / seconds if seconds else 0.0,
        "CPU seconds": cpu_seconds,
        "memory MB": sample["rss_mb"],
    }


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _describe_profile(profile: cProfile.Profile) -> str:
    text = io.StringIO()
    statistics = pstats.Stats(profile, stream=text)
    statistics.sort_stats("cumulative").print_stats(_PROFILE_LINES)
    statistics.sort_stats("tottime").print_stats(_PROFILE_LINES // 2)
    return text.getvalue()


if __name__ == "__main__":
    main()
