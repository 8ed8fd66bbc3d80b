"""Trials that only sleep and report: what remains is what running a trial costs.

Workers import this file, so it imports nothing heavy: 64 of them on a small machine start sooner.
More than fit into its memory sit in a few processes together (`seated`).
"""

from __future__ import annotations

import asyncio
import csv
import math
import random
import time
from collections.abc import Iterator
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
        gate: Actor handle of `Gate`, which the first trial of each worker waits at; None is open.
        n_workers: Trials below this number wait at the gate.
        checkpoint_bytes: Size of a trial's checkpoint; as of a head alone.
        seed: Seed of the run and of the curves.
    """

    epochs: int
    median_epoch_seconds: float
    gate: Any = None
    n_workers: int = 0
    checkpoint_bytes: int = 40_000
    seed: int = 0


class Gate:
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
        """Return when the gate opened, on the machine's clock; None while it is shut."""
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
    ) -> None:
        """Begin the worker's first trial."""
        if context is None or checkpoints is None:
            raise ValueError("SimulatedTrial needs its arguments by `tune.with_parameters`")
        self._context, self._checkpoints = context, checkpoints
        self._node = str(ray.util.get_node_ip_address())
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Sleep through one epoch."""
        if self._epoch == 0:
            self._wait_at_gate()
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
        self._params = config["params"]
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

    def _wait_at_gate(self) -> None:
        gate = self._context.gate
        if gate is not None and self._number < self._context.n_workers:
            ray.get(gate.arrive.remote())

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
            lr=float(self._params.get("lr", 1e-3)),
            seconds=self._seconds,
            images_per_second=0.0,
            best_val_accuracy=best_accuracy,
            best_val_loss=best_loss,
            best_epoch=best_epoch,
            trained_seconds=self._seconds * self._epoch,
            node=self._node,
            finished=self._epoch >= self._context.epochs,
        )


class Room:
    """A process in which many simulated workers sit; each works in a thread of its own."""

    def __init__(self) -> None:
        self._workers: dict[int, Any] = {}
        self._kinds: dict[bytes, type] = {}

    def seat(self, number: int, kind: bytes, kwargs: dict[str, Any]) -> None:
        """Begin a worker: an instance of a pickled class."""
        if kind not in self._kinds:
            self._kinds[kind] = cloudpickle.loads(kind)
        self._workers[number] = self._kinds[kind](**kwargs)

    def call(self, number: int, method: str, args: Any, kwargs: Any) -> Any:
        """Call a worker's method; one that is to end leaves its seat."""
        if method == _ENDS:
            return self._workers.pop(number, None) is not None
        return getattr(self._workers[number], method)(*args, **kwargs)


_READY, _ENDS = "__ray_ready__", "__ray_terminate__"


class _Seat:
    """What Tune takes for the handle of an actor."""

    def __init__(self, room: Any, number: int, kind: Any, kwargs: dict[str, Any]) -> None:
        self._room, self._number = room, number
        self._begun = room.seat.remote(number, kind, kwargs)

    def __getattr__(self, name: str) -> _Call:
        if name.startswith("__") and name not in (_READY, _ENDS):
            raise AttributeError(name)
        return _Call(self, name)


@dataclass(frozen=True)
class _Call:
    seat: _Seat
    method: str

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in the worker's room, as a task."""
        seat = self.seat
        if self.method == _READY:
            return seat._begun
        return seat._room.call.remote(seat._number, self.method, args, kwargs)


@dataclass(frozen=True)
class _SeatedClass:
    """What Tune takes for the class of an actor; `remote` begins one."""

    rooms: Any
    kind: Any

    def remote(self, **kwargs: Any) -> _Seat:
        """Seat a worker in the next room."""
        rooms, numbers = self.rooms
        number = next(numbers)
        return _Seat(rooms[number % len(rooms)], number, self.kind, kwargs)


@contextmanager
def seated(n_workers: int, seats: int) -> Iterator[None]:
    """Let `seats` of Tune's workers share a process while this lasts; Ray must be running.

    Tune still reserves each worker's resources, and waits for each one's results. Only the workers'
    own processes are missing, which are on other machines where there are many of them.
    """
    n_rooms = -(-n_workers // seats)
    room = ray.remote(num_cpus=0, max_concurrency=seats + 8)(Room)
    rooms = ([room.remote() for _ in range(n_rooms)], count())
    kinds: dict[int, Any] = {}

    def annotate(_: Any, entity: Any, *__: Any, **___: Any) -> _SeatedClass:
        if id(entity) not in kinds:
            kinds[id(entity)] = ray.put(cloudpickle.dumps(entity.__ray_metadata__.modified_class))
        return _SeatedClass(rooms, kinds[id(entity)])

    end = ray.kill

    def kill(actor: Any, **options: Any) -> None:
        if not isinstance(actor, _Seat):
            end(actor, **options)

    with (
        mock.patch.object(PlacementGroupAcquiredResources, "_annotate_remote_entity", annotate),
        mock.patch.object(ray, "kill", kill),
    ):
        yield
