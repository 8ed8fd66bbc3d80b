"""Keeps the weights of the best few trials, and one rolling checkpoint of each running one.

Workers hand it files' contents through Ray, so no storage needs to be shared. Its actor imports no
PyTorch: it is there in a moment and takes little memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Score = tuple[float, float]
"""Higher is better: validation accuracy, then the negative validation loss."""

BEST_WEIGHTS = "best.pt"
CHECKPOINT = "checkpoint.pt"


class Keeper:
    """Writes `trials/<number>/best.pt` and `checkpoint.pt`; lives where the run folder is."""

    def __init__(self, trials: Path, keep: int, kept: dict[int, Score]) -> None:
        """Begin with the scores of an earlier session's full-length trials, by trial number."""
        self._trials = trials
        self._keep = keep
        self._kept = {
            number: score
            for number, score in kept.items()
            if (trials / str(number) / BEST_WEIGHTS).is_file()
        }

    def wants(self, number: int, score: Score) -> bool:
        """Say whether a trial of this score would be kept, so that others send no weights."""
        rivals = [s for n, s in self._kept.items() if n != number]
        return len(rivals) < self._keep or score > sorted(rivals, reverse=True)[self._keep - 1]

    def offer(self, number: int, score: Score, content: bytes) -> None:
        """Keep a trial's weights, as a file's content; let go those no longer among the best."""
        self._write(number, BEST_WEIGHTS, content)
        self._kept[number] = score
        ranked = sorted(self._kept, key=lambda n: self._kept[n], reverse=True)
        for loser in ranked[self._keep :]:
            (self._trials / str(loser) / BEST_WEIGHTS).unlink(missing_ok=True)
            del self._kept[loser]

    def checkpoint(self, number: int, content: bytes) -> None:
        """Replace a running trial's checkpoint."""
        self._write(number, CHECKPOINT, content)

    def last_checkpoint(self, number: int) -> bytes | None:
        """Return a trial's checkpoint; None where there is none."""
        path = self._trials / str(number) / CHECKPOINT
        return path.read_bytes() if path.is_file() else None

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a trial that has ended."""
        (self._trials / str(number) / CHECKPOINT).unlink(missing_ok=True)

    def _write(self, number: int, name: str, content: bytes) -> None:
        path = self._trials / str(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a name without its content
        partial.replace(path)


def start_keeper(trials: Path, keep: int, kept: dict[int, Score]) -> Any:
    """Start the actor on the driver's node; arguments are those of `Keeper`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(Keeper).options(scheduling_strategy=here)
    return actor.remote(trials, keep, kept)
