"""Trials that only sleep and report: what remains is what running a trial costs.

Workers import this file, so it imports nothing heavy: 64 of them on a small machine start sooner.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune


@dataclass(frozen=True)
class SimulatedBench:
    """What simulated trials share; stands in for `trainables.trial.Bench`.

    Attributes:
        epochs: The full length of a trial.
        median_epoch_seconds: That workers sleep an epoch; 0 makes a trial a no-op.
        gate: Actor handle of `Gate`, which the first trial of each worker waits at; None is open.
        n_workers: Trials below this number wait at the gate.
        checkpoint_bytes: That a trial hands the keeper every epoch; as of a head alone.
        seed: Of the run, and of the curves.
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

    def arrive(self) -> None:
        """Note one more worker; the last one opens the gate."""
        self._n_arrived += 1
        if self._n_arrived >= self._n_awaited:
            self._opened_at = time.time()

    def opened_at(self) -> float | None:
        """Return when the gate opened, on the machine's clock; None while it is shut."""
        return self._opened_at


def epoch_seconds(bench: SimulatedBench, number: int) -> float:
    """Return how long an epoch of a trial takes: log-normal, within a factor of ten.

    It depends on the trial's number alone, so that the work is the same whatever is proposed.
    """
    if bench.median_epoch_seconds == 0:
        return 0.0
    factor = random.Random(f"{bench.seed}/{number}/seconds").lognormvariate(0.0, 0.6)
    return bench.median_epoch_seconds * min(max(factor, 0.2), 2.0)


def accuracy_at(bench: SimulatedBench, number: int, params: dict[str, Any], epoch: int) -> float:
    """Return a trial's validation accuracy after an epoch.

    An exponential rise to an asymptote that depends on the learning rate and the freeze depth, with
    the noise of a validation split of some 160 pictures.
    """
    rng = random.Random(f"{bench.seed}/{number}/curve")
    off_best = math.log10(float(params.get("lr", 1e-3))) + 3.3
    depth = int(params.get("freeze_depth", 3))
    ceiling = 0.985 - 0.035 * off_best**2 - 0.012 * abs(depth - 3) + rng.gauss(0.0, 0.01)
    pace = rng.uniform(0.8, 2.5) * (1.5 if off_best < -0.7 else 1.0)
    rise = ceiling - (ceiling - 0.2) * math.exp(-epoch / pace)
    noise = random.Random(f"{bench.seed}/{number}/{epoch}").gauss(0.0, 0.012)
    return min(max(rise + noise, 0.0), 1.0)


class SimulatedTrial(tune.Trainable):
    """Stands in for `trainables.trial.ImageTrial`: the same results, no training."""

    _best: tuple[float, int]

    def setup(
        self,
        config: dict[str, Any],
        bench: SimulatedBench | None = None,
        train_rows: Any = None,
        val_rows: Any = None,
        keeper: Any = None,
    ) -> None:
        """Begin the worker's first trial."""
        if bench is None or keeper is None:
            raise ValueError("SimulatedTrial needs a bench and a keeper")
        self._bench, self._keeper = bench, keeper
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
        accuracy = accuracy_at(self._bench, self._number, self._params, self._epoch)
        if accuracy > self._best[0]:
            self._best = (accuracy, self._epoch)
        result = self._result(accuracy)
        self._keep(result["finished"])
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the keeper has a checkpoint of every epoch."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._params = config["params"]
        self._seconds = epoch_seconds(self._bench, self._number)
        self._epoch = 0
        self._best = (-1.0, 0)
        self._keeper.last_checkpoint(self._number)

    def _keep(self, finished: bool) -> None:
        """Hand the keeper what `ImageTrial` does."""
        content, score = bytes(self._bench.checkpoint_bytes), (self._best[0], 0.0)
        if finished and self._keeper.wants(self._number, score):
            self._keeper.offer(self._number, score, content)
        self._keeper.checkpoint(self._number, content)

    def _wait_at_gate(self) -> None:
        gate = self._bench.gate
        if gate is None or self._number >= self._bench.n_workers:
            return
        ray.get(gate.arrive.remote())
        while ray.get(gate.opened_at.remote()) is None:
            time.sleep(0.2)

    def _result(self, accuracy: float) -> dict[str, Any]:
        """Report what `ImageTrial` does."""
        finished = self._epoch >= self._bench.epochs
        best_accuracy, best_epoch = self._best
        return {
            "epoch": self._epoch,
            "train_loss": 1 - accuracy,
            "train_accuracy": accuracy,
            "train_macro_f1": accuracy,
            "val_loss": 1 - accuracy,
            "val_accuracy": accuracy,
            "val_macro_f1": accuracy,
            "lr": float(self._params.get("lr", 1e-3)),
            "seconds": self._seconds,
            "images_per_second": 0.0,
            "gpu_memory_mb": 0.0,
            "best_val_accuracy": best_accuracy,
            "best_val_loss": 1 - best_accuracy,
            "best_epoch": best_epoch,
            "trained_seconds": self._seconds * self._epoch,
            "node": self._node,
            "finished": finished,
            "done": finished,
        }
