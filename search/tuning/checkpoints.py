"""Store the weights of the best few trials, and the last checkpoint of each running one.

Workers send files' contents through Ray, so they need no common storage; in a run with `--storage`
they write there themselves. The actor imports no PyTorch: it starts at once and needs little
memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from search.cluster.nodes import on_driver_node
from search.cluster.session import ends_with_session
from search.runs.run_folder import BEST_WEIGHTS, CHECKPOINT
from search.runs.storage import Files, LocalFiles, SharedFiles
from trainables.json_text import parse_json

_log = logging.getLogger(__name__)

_KEPT = "kept.json"
"""Trials whose weights are kept, with their scores: after a crash Ray restarts the actor."""

Score = tuple[float, float]
"""Higher is better: validation score, then the negative validation loss."""


class CheckpointStore:
    """Keeps the weights of the trials with the best scores, as `trials/<number>/best.pt`.

    And the last checkpoint of each running trial, as `checkpoint.pt` beside it.
    """

    def __init__(
        self, trials: Path | Files, keep: int, kept: dict[int, Score], run_id: str = ""
    ) -> None:
        """Open a store.

        Args:
            trials: Where the files are.
            keep: How many trials to keep the weights of.
            kept: By number, the scores of full-length trials of earlier sessions; those without
                weights are ignored.
            run_id: Identifies the run; what another one has left is ignored.
        """
        self._files: Files = LocalFiles(trials) if isinstance(trials, Path) else trials
        self._keep = keep
        self._run_id = run_id
        recorded = self._read_kept()
        self._kept = {
            number: score
            for number, score in (kept | (recorded or {})).items()
            if recorded is not None and self._files.has(f"{number}/{BEST_WEIGHTS}")
        }

    def would_keep(self, number: int, score: Score) -> bool:
        """Return whether a trial's weights would be kept, before they are sent."""
        others = [s for n, s in self._kept.items() if n != number]
        return len(others) < self._keep or score > sorted(others, reverse=True)[self._keep - 1]

    def submit(self, number: int, score: Score, content: bytes | None) -> None:
        """Keep a trial's weights, and delete those that are no longer among the best.

        Args:
            number: Number of the trial.
            score: Score of the weights.
            content: Content of the file; None if it is written already.
        """
        if content is not None:
            self._files.write(f"{number}/{BEST_WEIGHTS}", content)
        self._kept[number] = score
        ranked = sorted(self._kept, key=lambda n: self._kept[n], reverse=True)
        for other in ranked[self._keep :]:
            self._files.remove(f"{other}/{BEST_WEIGHTS}")
            del self._kept[other]
        record = {"run_id": self._run_id, "kept": list(self._kept.items())}
        self._files.write(_KEPT, json.dumps(record).encode())

    def save(self, number: int, content: bytes) -> None:
        """Replace a running trial's checkpoint."""
        self._files.write(f"{number}/{CHECKPOINT}", content)

    def load_last(self, number: int) -> bytes | None:
        """Return a trial's last checkpoint; None where there is none."""
        return self._files.read(f"{number}/{CHECKPOINT}")

    def delete_checkpoint(self, number: int) -> None:
        """Delete the checkpoint of a trial that has ended."""
        self._files.remove(f"{number}/{CHECKPOINT}")

    def kept(self) -> list[int]:
        """Return the numbers of the trials whose weights are kept."""
        return sorted(self._kept)

    def _read_kept(self) -> dict[int, Score] | None:
        """Return what this store had kept before Ray restarted it; None for another run's."""
        try:
            record = parse_json(self._files.read(_KEPT) or b"")
            kept = {int(number): (float(a), float(b)) for number, (a, b) in record["kept"]}
        except (ValueError, TypeError, KeyError, OverflowError):  # missing, or damaged
            return {}
        return kept if record.get("run_id") == self._run_id else None


@dataclass(frozen=True)
class CheckpointClient:
    """Access to the store from any node; a `trainables.worker.TrialCheckpoints`.

    Attributes:
        actor: Handle of `CheckpointStore`.
        shared: Storage that all nodes reach; None sends the files through the actor.
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

    def save(self, number: int, content: bytes) -> None:
        """See `CheckpointStore`."""
        if self.shared is not None:
            self.shared.write(f"{number}/{CHECKPOINT}", content)
        else:
            ray.get(self.actor.save.remote(number, content))

    def load_last(self, number: int) -> bytes | None:
        """See `CheckpointStore`."""
        if self.shared is not None:
            return self.shared.read(f"{number}/{CHECKPOINT}")
        content: bytes | None = ray.get(self.actor.load_last.remote(number))
        return content

    def delete_checkpoint(self, number: int) -> None:
        """See `CheckpointStore`; returns before it is done."""
        self.actor.delete_checkpoint.remote(number)

    def delete_left_over(self, trials: Path, ended: Iterable[int]) -> None:
        """Delete the checkpoints of ended trials, where a session was killed before it did.

        Args:
            trials: The run's own folder of trials.
            ended: Numbers of the trials that have ended.
        """
        local = (f"{path.parent.name}/{path.name}" for path in trials.glob(f"*/{CHECKPOINT}"))
        names = set(local if self.shared is None else self.shared.names())
        for number in ended:
            if f"{number}/{CHECKPOINT}" in names:
                self.delete_checkpoint(number)

    def download_best(self, trials: Path) -> None:
        """Copy the kept weights from shared storage to the run's own folder."""
        if self.shared is None:
            return
        kept: Iterable[int] = ray.get(self.actor.kept.remote())
        local = LocalFiles(trials)
        for number in kept:
            content = self.shared.read(f"{number}/{BEST_WEIGHTS}")
            if content is None:
                _log.warning("trial %d: its weights are not in %s", number, self.shared.url)
            else:
                local.write(f"{number}/{BEST_WEIGHTS}", content)


def start_checkpoint_store(
    trials: Path,
    keep: int,
    kept: dict[int, Score],
    shared: SharedFiles | None = None,
    run_id: str = "",
) -> CheckpointClient:
    """Start the actor on the driver's node; see `CheckpointStore` for the arguments."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CheckpointStore).options(
        scheduling_strategy=on_driver_node()
    )
    handle = ends_with_session(actor.remote(shared or trials, keep, kept, run_id))
    return CheckpointClient(handle, shared)
