"""Trials that only sleep and report: what remains is what running a trial costs.

Workers import this file, so it imports nothing heavy: 64 of them on a small machine start sooner.
More workers than fit into its memory share a few processes (`share_processes`).

The module is long because sleeping trials and shared processes replace one class of Ray together.
"""

from __future__ import annotations

import asyncio
import csv
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray import cloudpickle, tune
from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources

from trainables.trial_result import TrialResult

RECORDED = Path(__file__).parent / "recorded_curves.csv"
"""Validation curves of Caltech-101's six classes, a row each."""


@dataclass(frozen=True)
class SimulatedContext:
    """What simulated trials have in common; in place of `trainables.worker.TrainingContext`.

    Attributes:
        epochs: The full length of a trial; at most that of the recorded curves.
        median_epoch_seconds: Seconds that workers sleep per epoch; 0 makes a trial a no-op.
        barrier: Actor handle of `StartBarrier`, where the first trial of each worker waits; None is
            no barrier.
        n_workers: Trials below this number wait at the barrier.
        checkpoint_bytes: Size of a trial's checkpoint; as of a head alone.
        seed: Seed of the run and of the curves.
    """

    epochs: int
    median_epoch_seconds: float
    barrier: Any = None
    n_workers: int = 0
    checkpoint_bytes: int = 40_000
    seed: int = 0


class StartBarrier:
    """Holds the first trials back until all workers have started, and knows when that was."""

    def __init__(self, n_awaited: int) -> None:
        self._n_awaited = n_awaited
        self._n_arrived = 0
        self._opened_at: float | None = None
        self._is_open = asyncio.Event()

    async def arrive(self) -> None:
        """Let one more worker wait until the last one has come."""
        self._n_arrived += 1
        if self._n_arrived >= self._n_awaited and self._opened_at is None:
            self._opened_at = time.time()
            self._is_open.set()
        await self._is_open.wait()

    async def opened_at(self) -> float | None:
        """Return when the last worker arrived, on the machine's clock; None before."""
        return self._opened_at


def epoch_seconds(context: SimulatedContext, number: int) -> float:
    """Return how long an epoch of a trial takes: log-normal, within a factor of ten.

    It depends on the trial's number alone, so that the work is the same whatever is proposed.
    """
    if context.median_epoch_seconds == 0:
        return 0.0
    factor = random.Random(f"{context.seed}/{number}/seconds").lognormvariate(0.0, 0.6)
    return context.median_epoch_seconds * min(max(factor, 0.2), 2.0)


@dataclass(frozen=True)
class Curve:
    """A learning curve that a real training left.

    Attributes:
        backbone, lr, freeze_depth: Parameters of its configuration.
        accuracy, loss: Validation metrics after each epoch; the loss in nats.
    """

    backbone: str
    lr: float
    freeze_depth: int
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]


@cache
def recorded_curves() -> tuple[Curve, ...]:
    """Read the curves that `benchmarks/tuning/search_quality.py --record` wrote."""
    with RECORDED.open(newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    n_epochs = (len(rows[0]) - 3) // 2
    return tuple(
        Curve(
            row[0],
            float(row[1]),
            int(row[2]),
            tuple(map(float, row[3 : 3 + n_epochs])),
            tuple(map(float, row[3 + n_epochs :])),
        )
        for row in rows
    )


def curve_of(context: SimulatedContext, number: int, params: dict[str, Any]) -> Curve:
    """Return the curve that a trial reports: one of the eight nearest, drawn by its number.

    Nearest in the learning rate, a decade counting as much as a freeze depth. Two trainings of much
    the same come out otherwise; so do two trials here.
    """
    lr, depth = math.log10(float(params.get("lr", 1e-3))), int(params.get("freeze_depth", 5))
    nearest = sorted(
        recorded_curves(),
        key=lambda curve: abs(math.log10(curve.lr) - lr) + abs(curve.freeze_depth - depth),
    )
    return random.Random(f"{context.seed}/{number}/curve").choice(nearest[:8])


class SimulatedTrial(tune.Trainable):
    """Stands in for `trainables.trial.ImageTrial`: the same results, no training."""

    _best: tuple[float, float, int]

    def setup(
        self,
        config: dict[str, Any],
        context: SimulatedContext | None = None,
        train_rows: Any = None,
        val_rows: Any = None,
        checkpoints: Any = None,
        n_threads: int = 1,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin the worker's first trial."""
        if context is None or checkpoints is None:
            raise ValueError("SimulatedTrial needs its arguments by `tune.with_parameters`")
        self._context, self._checkpoints = context, checkpoints
        self._node = str(ray.util.get_node_ip_address())
        self._is_draining, self._asked_at = is_draining, 0.0
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Sleep through one epoch."""
        if self._epoch == 0:
            self._wait_at_barrier()
        if time.monotonic() - self._asked_at > 1.0:  # as `ImageTrial` does
            self._is_draining()
            self._asked_at = time.monotonic()
        time.sleep(self._seconds)
        self._epoch += 1
        accuracy = self._curve.accuracy[self._epoch - 1]
        loss = self._curve.loss[self._epoch - 1]
        self._best = max(self._best, (accuracy, -loss, self._epoch), key=lambda best: best[:2])
        result = self._result(accuracy, loss)
        self._save(result.finished)
        return result.as_dict()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: a checkpoint of every epoch is saved elsewhere."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._params, self._length = config["params"], int(config["epochs"])
        self._seconds = epoch_seconds(self._context, self._number)
        self._epoch = 0
        self._best = (-1.0, 0.0, 0)
        self._curve = curve_of(self._context, self._number, self._params)
        self._checkpoints.load_last(self._number)

    def _save(self, finished: bool) -> None:
        """Save what `ImageTrial` does."""
        content, score = bytes(self._context.checkpoint_bytes), self._best[:2]
        if finished and self._checkpoints.would_keep(self._number, score):
            self._checkpoints.submit(self._number, score, content)
        self._checkpoints.save(self._number, content)

    def _wait_at_barrier(self) -> None:
        barrier = self._context.barrier
        if barrier is not None and self._number < self._context.n_workers:
            ray.get(barrier.arrive.remote())

    def _result(self, accuracy: float, loss: float) -> TrialResult:
        """Report what `ImageTrial` does."""
        best_accuracy, best_loss, best_epoch = self._best[0], -self._best[1], self._best[2]
        return TrialResult(
            epoch=self._epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            train_macro_f1=accuracy,
            val_loss=loss,
            val_accuracy=accuracy,
            val_macro_f1=accuracy,
            val_score=accuracy,
            lr=float(self._params.get("lr", 1e-3)),
            seconds=self._seconds,
            images_per_second=0.0,
            best_val_score=best_accuracy,
            best_val_accuracy=best_accuracy,
            best_val_loss=best_loss,
            best_epoch=best_epoch,
            trained_seconds=self._seconds * self._epoch,
            node=self._node,
            finished=self._epoch >= self._length,
        )


class WorkerProcess:
    """A process that many simulated workers share; each runs in a thread of its own."""

    def __init__(self) -> None:
        self._workers: dict[int, Any] = {}
        self._kinds: dict[bytes, type] = {}

    def start(self, number: int, kind: bytes, kwargs: dict[str, Any]) -> None:
        """Start a worker: an instance of a pickled class."""
        if kind not in self._kinds:
            self._kinds[kind] = cloudpickle.loads(kind)
        self._workers[number] = self._kinds[kind](**kwargs)

    def call(self, number: int, method: str, args: Any, kwargs: Any) -> Any:
        """Call a worker's method; `__ray_terminate__` removes the worker."""
        if method == _ENDS:
            return self._workers.pop(number, None) is not None
        return getattr(self._workers[number], method)(*args, **kwargs)


_READY, _ENDS = "__ray_ready__", "__ray_terminate__"


class _WorkerHandle:
    """Stands in for the handle of a worker's actor."""

    def __init__(self, process: Any, number: int, kind: Any, kwargs: dict[str, Any]) -> None:
        self._process, self._number = process, number
        self._started = process.start.remote(number, kind, kwargs)

    def __getattr__(self, name: str) -> _Call:
        if name.startswith("__") and name not in (_READY, _ENDS):
            raise AttributeError(name)
        return _Call(self, name)


@dataclass(frozen=True)
class _Call:
    worker: _WorkerHandle
    method: str

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in the worker's process, as a task."""
        worker = self.worker
        if self.method == _READY:
            return worker._started
        return worker._process.call.remote(worker._number, self.method, args, kwargs)


@dataclass(frozen=True)
class _WorkerClass:
    """Stands in for the class of a worker's actor; `remote` starts a worker."""

    processes: Any
    kind: Any

    def remote(self, **kwargs: Any) -> _WorkerHandle:
        """Start a worker in the next process."""
        processes, numbers = self.processes
        number = next(numbers)
        return _WorkerHandle(processes[number % len(processes)], number, self.kind, kwargs)


@contextmanager
def share_processes(n_workers: int, workers_per_process: int) -> Iterator[None]:
    """Put several of Tune's workers into each process while the context lasts.

    Ray must be running.

    Tune still reserves each worker's resources, and waits for each one's results. Only the workers'
    own processes are missing, which are on other machines where there are many of them. Tune has no
    setting for that: what is replaced here is what its workers are started, awaited and ended by.
    """
    n_processes = -(-n_workers // workers_per_process)
    process = ray.remote(num_cpus=0, max_concurrency=workers_per_process + 8)(WorkerProcess)
    processes = ([process.remote() for _ in range(n_processes)], count())
    kinds: dict[int, Any] = {}

    def stand_in(entity: Any) -> _WorkerClass:
        # Ray has no public way from an actor's class to the class that it was made from.
        if id(entity) not in kinds:
            kinds[id(entity)] = ray.put(cloudpickle.dumps(entity.__ray_metadata__.modified_class))
        return _WorkerClass(processes, kinds[id(entity)])

    def annotate(_: Any, entities: list[Any]) -> list[_WorkerClass]:
        return [stand_in(entity) for entity in entities]

    end = ray.kill

    def kill(actor: Any, **options: Any) -> None:
        if not isinstance(actor, _WorkerHandle):
            end(actor, **options)

    with (
        mock.patch.object(PlacementGroupAcquiredResources, "annotate_remote_entities", annotate),
        mock.patch.object(ray, "kill", kill),
    ):
        yield
