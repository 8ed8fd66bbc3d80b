"""Keeps the weights of the best few trials, and of no others.

Its actor imports no PyTorch: it is there in a moment and takes little memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Score = tuple[float, float]
"""Higher is better: validation accuracy, then the negative validation loss."""

BEST_WEIGHTS = "best.pt"


class Keeper:
    """Writes `trials/<number>/best.pt` of the best `keep` trials; lives where the run folder is."""

    def __init__(self, trials: Path, keep: int, kept: dict[int, Score]) -> None:
        """Begin with what an earlier session kept, by trial number."""
        self._trials = trials
        self._keep = keep
        self._kept = dict(kept)

    def wants(self, number: int, score: Score) -> bool:
        """Say whether a trial of this score would be kept, so that others send no weights."""
        rivals = [s for n, s in self._kept.items() if n != number]
        return len(rivals) < self._keep or score > sorted(rivals, reverse=True)[self._keep - 1]

    def offer(self, number: int, score: Score, content: bytes) -> None:
        """Keep a trial's weights, as a file's content; let go those no longer among the best."""
        path = self._trials / str(number) / BEST_WEIGHTS
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)
        self._kept[number] = score
        ranked = sorted(self._kept, key=lambda n: self._kept[n], reverse=True)
        for loser in ranked[self._keep :]:
            (self._trials / str(loser) / BEST_WEIGHTS).unlink(missing_ok=True)
            del self._kept[loser]


def start_keeper(trials: Path, keep: int, kept: dict[int, Score]) -> Any:
    """Start the actor on the driver's node; arguments are those of `Keeper`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(Keeper).options(scheduling_strategy=here)
    return actor.remote(trials, keep, kept)
