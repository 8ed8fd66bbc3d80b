"""A trial as Ray Tune sees it: `tune.Trainable` around `training.Trainer`.

The one file of this folder that knows Ray.
"""

from __future__ import annotations

import io
import pickle
import traceback
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError

from spaces.base import TrialConfig
from trainables.compute import compute_with, give_memory_back
from trainables.disk_full import is_disk_full
from trainables.models.ensemble import Weights
from trainables.trainer import Trainer, TrainingError
from trainables.worker import (
    TrainingContext,
    create_trainer,
    resolve_config,
    threads_of_worker,
)

FAILURE = "failure"
"""Key of a result that says why a trial failed."""

DISK_FULL = "disk_full"
"""Key of a result that says why a trial cannot go on, though it did not fail."""


class ImageTrial(tune.Trainable):
    """One configuration of a search; workers go from one to the next (`reuse_actors`).

    After each epoch the keeper has a checkpoint before the result is told. So a trial that goes on
    elsewhere, after its worker or the whole run was lost, tells its last epoch once more, and
    trains none twice but the one it was in.
    """

    _number: int
    _trainer: Trainer | None
    _best_weights: Weights
    _pending_result: dict[str, Any] | None
    _failure: dict[str, Any] | None
    _trained_seconds: float

    def setup(
        self,
        config: dict[str, Any],
        context: TrainingContext | None = None,
        train_rows: np.ndarray | None = None,
        val_rows: np.ndarray | None = None,
        checkpoints: Any = None,
    ) -> None:
        """Begin a trial.

        Args:
            config: Its `number` in the study and its `params`.
            context: What all trainings share.
            train_rows: int64, table rows to train on.
            val_rows: int64, table rows to validate on.
            checkpoints: A `search.tuning.checkpoints.CheckpointClient`.
        """
        if context is None or train_rows is None or val_rows is None or checkpoints is None:
            raise ValueError("ImageTrial needs tune.with_parameters(bench, rows, keeper)")
        self._bench, self._keeper = context, checkpoints
        self._train_rows = torch.as_tensor(train_rows.copy())
        self._val_rows = torch.as_tensor(val_rows.copy())
        compute_with(threads_of_worker())
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train for one epoch; a failure is a result too, so only lost workers are tried again."""
        if self._pending_result is not None:
            told, self._pending_result = self._pending_result, None
            return told
        if self._failure is None:
            try:
                return self._run_epoch()
            except Exception as error:
                self._failure = _describe_failure(error)
        return self._failure

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the keeper has a checkpoint of every epoch."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: `setup` asks the keeper."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._trainer, self._best_weights = None, {}
        give_memory_back()
        self._pending_result = self._failure = None
        self._trained_seconds = 0.0
        try:
            self._trainer = self._create_trainer(resolve_config(config["params"]))
            self._carry_on(self._trainer)
        except Exception as error:
            self._failure = _describe_failure(error)

    def _create_trainer(self, config: TrialConfig) -> Trainer:
        return create_trainer(
            self._bench,
            config,
            self._train_rows,
            self._val_rows,
            seed=self._bench.seed * 1_000_003 + self._number,
            epochs=self._bench.epochs,
            patience=self._bench.patience,
            initial_head=self._bench.heads.get(config.backbone),
        )

    def _carry_on(self, trainer: Trainer) -> None:
        """Go back to the last checkpoint, if there is one that can be read.

        Its epoch is told once more: whoever heard of it may not have decided on it.
        """
        content = self._keeper.last_checkpoint(self._number)
        if content is None:
            return
        try:
            state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return  # damaged: the trial begins anew, and what is known of it is not told again
        trainer.load_state_dict(state["trainer"])
        self._best_weights = state["best_weights"]
        self._trained_seconds = state["told"]["trained_seconds"]
        self._pending_result = state["told"]

    def _run_epoch(self) -> dict[str, Any]:
        trainer = self._trainer
        if trainer is None:
            raise RuntimeError("a trial runs before it has begun")
        result = trainer.run_epoch()
        best = trainer.best or result
        if best is result:
            self._best_weights = trainer.model.member_weights()
        self._trained_seconds += result.seconds
        told = {
            **vars(result),
            "best_val_accuracy": best.val_accuracy,
            "best_val_loss": best.val_loss,
            "best_epoch": best.epoch,
            "trained_seconds": self._trained_seconds,
            "node": str(ray.util.get_node_ip_address()),
            "finished": trainer.finished,
            "done": trainer.finished,
        }
        if trainer.finished:
            self._submit_weights((best.val_accuracy, -best.val_loss))
        state = {"trainer": trainer.state_dict(), "best_weights": self._best_weights, "told": told}
        self._keeper.checkpoint(self._number, _as_file(state))
        return told

    def _submit_weights(self, score: tuple[float, float]) -> None:
        if self._keeper.would_keep(self._number, score):
            self._keeper.submit(self._number, score, _as_file(self._best_weights))


def _as_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _describe_failure(error: Exception) -> dict[str, Any]:
    """Return the result that tells a trial's failure, or that the disk is full.

    Raises:
        RayError: the cluster lost something, which is not the trial's failure: it goes on in
            another worker.
    """
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        raise error
    if is_disk_full(error):
        return {DISK_FULL: "no space left for checkpoints"}
    reason = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    return {FAILURE: reason[:500], "traceback": trace, "done": True}
