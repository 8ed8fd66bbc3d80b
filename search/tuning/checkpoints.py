"""Keeps the weights of the best few trials, and one rolling checkpoint of each running one.

Workers hand files' contents to the keeper through Ray, so no storage needs to be shared; where a
run has storage, they write there themselves. The keeper's actor imports no PyTorch: it is there in
a moment and takes little memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from search.cluster.nodes import on_driver_node
from search.runs.run_folder import BEST_WEIGHTS as BEST_WEIGHTS
from search.runs.run_folder import CHECKPOINT as CHECKPOINT
from search.runs.storage import Files, LocalFiles, SharedFiles

_KEPT = "kept.json"
"""Whose weights are kept, with their scores: Ray starts a lost keeper anew, knowing nothing."""

Score = tuple[float, float]
"""Higher is better: validation accuracy, then the negative validation loss."""


class CheckpointStore:
    """Decides whose weights are kept; `trials/<number>/best.pt` and `checkpoint.pt` are its files.

    It lives where the run folder is.
    """

    def __init__(self, trials: Path | Files, keep: int, kept: dict[int, Score]) -> None:
        """Begin with the scores of an earlier session's full-length trials, by trial number."""
        self._files: Files = LocalFiles(trials) if isinstance(trials, Path) else trials
        self._keep = keep
        self._kept = {
            number: score
            for number, score in (kept | self._noted()).items()
            if self._files.has(f"{number}/{BEST_WEIGHTS}")
        }

    def would_keep(self, number: int, score: Score) -> bool:
        """Say whether a trial of this score would be kept, so that others send no weights."""
        rivals = [s for n, s in self._kept.items() if n != number]
        return len(rivals) < self._keep or score > sorted(rivals, reverse=True)[self._keep - 1]

    def submit(self, number: int, score: Score, content: bytes | None) -> None:
        """Keep a trial's weights, as a file's content; let go those no longer among the best.

        None says that the file is there already.
        """
        if content is not None:
            self._files.write(f"{number}/{BEST_WEIGHTS}", content)
        self._kept[number] = score
        ranked = sorted(self._kept, key=lambda n: self._kept[n], reverse=True)
        for loser in ranked[self._keep :]:
            self._files.remove(f"{loser}/{BEST_WEIGHTS}")
            del self._kept[loser]
        self._files.write(_KEPT, json.dumps(list(self._kept.items())).encode())

    def checkpoint(self, number: int, content: bytes) -> None:
        """Replace a running trial's checkpoint."""
        self._files.write(f"{number}/{CHECKPOINT}", content)

    def last_checkpoint(self, number: int) -> bytes | None:
        """Return a trial's checkpoint; None where there is none."""
        return self._files.read(f"{number}/{CHECKPOINT}")

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a trial that has ended."""
        self._files.remove(f"{number}/{CHECKPOINT}")

    def kept(self) -> list[int]:
        """Return the numbers of the trials whose weights are kept."""
        return sorted(self._kept)

    def _noted(self) -> dict[int, Score]:
        """Return what was kept when this process's forerunner was lost, if there was one."""
        try:
            return {number: (a, b) for number, (a, b) in json.loads(self._files.read(_KEPT) or b"")}
        except (ValueError, TypeError):  # none, or damaged
            return {}


@dataclass(frozen=True)
class CheckpointClient:
    """The keeper, as trials on any machine call it.

    Attributes:
        actor: Handle of `CheckpointStore`.
        shared: Where the files lie, if every machine reaches it; else they go through the actor.
    """

    actor: Any
    shared: SharedFiles | None = None

    def would_keep(self, number: int, score: Score) -> bool:
        """See `CheckpointStore`."""
        return bool(ray.get(self.actor.would_keep.remote(number, score)))

    def submit(self, number: int, score: Score, content: bytes) -> None:
        """See `CheckpointStore`."""
        if self.shared is not None:
            self.shared.write(f"{number}/{BEST_WEIGHTS}", content)
        ray.get(self.actor.submit.remote(number, score, None if self.shared else content))

    def checkpoint(self, number: int, content: bytes) -> None:
        """See `CheckpointStore`."""
        if self.shared is not None:
            self.shared.write(f"{number}/{CHECKPOINT}", content)
        else:
            ray.get(self.actor.checkpoint.remote(number, content))

    def last_checkpoint(self, number: int) -> bytes | None:
        """See `CheckpointStore`."""
        if self.shared is not None:
            return self.shared.read(f"{number}/{CHECKPOINT}")
        content: bytes | None = ray.get(self.actor.last_checkpoint.remote(number))
        return content

    def forget(self, number: int) -> None:
        """See `CheckpointStore`; it is not waited for."""
        self.actor.forget.remote(number)

    def download_best(self, trials: Path) -> None:
        """Copy the weights that are kept in shared storage to the run's own folder."""
        if self.shared is None:
            return
        kept: Iterable[int] = ray.get(self.actor.kept.remote())
        home = LocalFiles(trials)
        for number in kept:
            content = self.shared.read(f"{number}/{BEST_WEIGHTS}")
            if content is not None:
                home.write(f"{number}/{BEST_WEIGHTS}", content)


def start_checkpoint_store(
    trials: Path, keep: int, kept: dict[int, Score], shared: SharedFiles | None = None
) -> CheckpointClient:
    """Start the actor beside the driver; see `CheckpointStore` for the arguments."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CheckpointStore).options(
        scheduling_strategy=on_driver_node()
    )
    return CheckpointClient(actor.remote(shared or trials, keep, kept), shared)
