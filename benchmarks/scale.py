"""1,000 simulated trials on 64 logical CPUs take at most 1.2 × the ideal makespan.

    python benchmarks/scale.py [--quick] [--trials 1000] [--workers 64] [--profile]

Workers sleep through their epochs (0.2 s to 2 s, the lengths of real ones scaled down) and report
synthetic learning curves; everything else is real: `search.trials.run_trials` with its searcher,
study.db, ASHA and reused workers, 20 epochs at most. The ideal is a list schedule of the very
epochs that were run: each worker takes the next trial the moment it is free. The start of the
workers is told apart: the first trial of each waits until all have come. The controller's CPU
seconds and memory are sampled as it goes.

`--profile` runs the controller under cProfile (slower) and prints where its time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import io
import os
import pstats
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.many_cpus import start_ray  # isort: skip  # quiets Ray

from benchmarks.overhead import Clock, run_ours
from benchmarks.reporting import ROOT, Ratio, Report, command_line, say
from benchmarks.simulated import Gate, SimulatedBench, epoch_seconds
from spaces.base import load_space

import ray  # isort: skip

_OBJECT_STORE_BYTES = 256 * 2**20
_PROFILE_LINES = 40
_SIZES = {"full": (1000, 64, 1.0), "quick": (200, 16, 0.5), "smoke": (6, 2, 0.05)}
"""Trials, workers, and the median seconds an epoch."""


class Sampler:
    """Samples the controller's CPU time and memory once a second, in a thread of its own."""

    def __init__(self, clock: Clock) -> None:
        self.samples: list[dict[str, float]] = []
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def running(self) -> Any:
        """Sample until the block ends."""
        self._thread.start()
        yield
        self._stop.set()
        self._thread.join()

    def at(self, n_ended: int) -> dict[str, float]:
        """Return the first sample with so many trials ended, or the last."""
        found = (sample for sample in self.samples if sample["trials_ended"] >= n_ended)
        return next(found, self.samples[-1])

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
                }
            )
            if self._stop.wait(1.0):
                return


def main() -> None:
    """Run the simulated search, and report."""
    arguments = parse()
    n_trials, n_workers = arguments.trials, arguments.workers
    report = Report("scale", "A search of simulated trials over its ideal makespan.")
    say(f"{n_trials} trials on {n_workers} logical CPUs; the workers start")
    space = load_space(ROOT / "spaces" / "caltech.py")
    clock = Clock()
    sampler = Sampler(clock)
    profile = cProfile.Profile() if arguments.profile else None
    start_ray(n_workers, _OBJECT_STORE_BYTES)
    gate = ray.remote(num_cpus=0)(Gate).remote(n_workers)
    bench = SimulatedBench(space.epochs, arguments.epoch_seconds, gate, n_workers)
    started = time.time()
    with tempfile.TemporaryDirectory() as folder, sampler.running():
        if profile:
            profile.enable()
        run_ours(space, bench, n_trials, n_workers, Path(folder), [clock])
        if profile:
            profile.disable()
    returned = time.time()
    opened = ray.get(gate.opened_at.remote())
    ray.shutdown()
    tell(report, bench, clock, sampler, n_workers, (started, opened, returned))
    report.publish(arguments)
    if profile:
        print(f"\n{_describe_profile(profile)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--trials", type=int, metavar="N", help="default: 1000")
    parser.add_argument("--workers", type=int, metavar="N", help="logical CPUs (default: 64)")
    parser.add_argument("--epoch-seconds", type=float, metavar="S", help="median (default: 1)")
    parser.add_argument(
        "--profile", action="store_true", help="show where the controller's time goes"
    )
    arguments = parser.parse_args()
    for name, value in zip(
        ("trials", "workers", "epoch_seconds"), _SIZES[arguments.mode], strict=True
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.trials < arguments.workers:
        parser.error(f"--trials must be at least --workers, {arguments.workers}")
    return arguments


def list_schedule(durations: Iterable[float], n_workers: int) -> float:
    """Return the makespan when each worker takes the next job the moment it is free."""
    free_at = [0.0] * n_workers
    for seconds in durations:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def tell(
    report: Report,
    bench: SimulatedBench,
    clock: Clock,
    sampler: Sampler,
    n_workers: int,
    moments: tuple[float, float, float],
) -> None:
    """Fill the report."""
    started, opened, returned = moments
    durations = [
        clock.epochs[number] * epoch_seconds(bench, number) for number in sorted(clock.epochs)
    ]
    ideal = list_schedule(durations, n_workers)
    makespan = max(clock.ended.values()) - opened
    n_epochs, n_trials = sum(clock.epochs.values()), len(clock.ended)
    first = next(s for s in sampler.samples if s["at"] >= opened or s is sampler.samples[-1])
    cpu_seconds = sampler.samples[-1]["cpu_seconds"] - first["cpu_seconds"]
    report.tables["Makespan"] = [
        {"what": "all workers started", "seconds": opened - started},
        {"what": "ideal (list schedule)", "seconds": ideal},
        {"what": "lower bound (work over workers)", "seconds": sum(durations) / n_workers},
        {"what": "measured, from all started to the last trial's end", "seconds": makespan},
        {"what": "taking the workers down", "seconds": returned - max(clock.ended.values())},
        {"what": "controller's CPU time in it", "seconds": cpu_seconds},
        {"what": "controller's CPU time a trial", "seconds": cpu_seconds / n_trials},
        {"what": "controller's CPU time an epoch", "seconds": cpu_seconds / n_epochs},
    ]
    report.tables["Controller over time, from all started"] = [
        _moment(sampler, first, round(n_trials * share)) for share in (0.1, 0.25, 0.5, 0.75, 1.0)
    ]
    report.ratios.append(Ratio("makespan over the ideal", makespan / ideal, 1.2, at_least=False))
    report.ratios.append(Ratio("controller's CPU time over the makespan", cpu_seconds / makespan))
    states = ", ".join(f"{n} {state}" for state, n in sorted(clock.states.items()))
    report.notes.append(
        f"{n_trials} trials ({states}), {n_epochs} epochs of {bench.median_epoch_seconds:g} s"
        f" (median), {n_workers} workers on {len(os.sched_getaffinity(0))} cores:"
        f" {n_epochs / makespan:.1f} results a second"
    )
    report.extra["samples"] = sampler.samples


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
