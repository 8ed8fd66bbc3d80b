"""Run a trial under Ray Tune: `ImageTrial` is a `tune.Trainable` around a `Trainer`.

The one module of this package that imports Ray.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError

from spaces.base import TrialConfig
from trainables.compute import configure_cpu, release_memory
from trainables.disk_full import is_disk_full
from trainables.models.classifier import Weights
from trainables.trainer import Trainer, TrainingError
from trainables.trial_files import TrialIdentity, pack, unpack
from trainables.trial_result import TrialResult
from trainables.worker import TrainingContext, TrialCheckpoints, create_trainer, resolve_config

_MAX_REASON = 500  # characters

LEAVES_NODE = "this node is being drained"
"""Ends a trial on a node that will be taken away; it is continued on another one."""

_DRAIN_CHECK_SECONDS = 1.0
"""How long a worker trusts that its node stays: asking is a call to the head node."""


class NodeDrainedError(RuntimeError):
    """The node of a trial will be taken away: a spot instance, a pod that moves."""


class ImageTrial(tune.Trainable):
    """Train one configuration, one epoch per `step`.

    Workers go from one trial to the next (`reuse_actors`). A checkpoint is saved after each epoch,
    before its result is reported. So a trial that is continued elsewhere, after its worker or the
    whole run was lost, reports its last epoch once more and trains only that one again which it was
    in. On a node that is being drained no epoch begins: the trial ends there with an error, which
    loses no epoch, and ends the worker.
    """

    _number: int
    _identity: TrialIdentity
    _trainer: Trainer | None
    _best_weights: Weights
    _pending_result: TrialResult | None
    _failure: TrialResult | None
    _trained_seconds: float

    def setup(
        self,
        config: dict[str, Any],
        context: TrainingContext | None = None,
        train_rows: np.ndarray | None = None,
        val_rows: np.ndarray | None = None,
        checkpoints: TrialCheckpoints | None = None,
        n_threads: int = 1,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin the worker's first trial.

        Args:
            config: The trial's `number` in the study, its `params`, and its full length, `epochs`.
            context: What all trainings share.
            train_rows: int64, table rows to train on.
            val_rows: int64, table rows to validate on.
            checkpoints: Where checkpoints and the best weights are kept.
            n_threads: Threads that PyTorch computes with.
            is_draining: Returns whether the node of this worker will be taken away.
        """
        if context is None or train_rows is None or val_rows is None or checkpoints is None:
            raise ValueError("ImageTrial needs its arguments by `tune.with_parameters`")
        self._context, self._checkpoints = context, checkpoints
        self._train_rows = torch.as_tensor(train_rows.copy())
        self._val_rows = torch.as_tensor(val_rows.copy())
        self._node = str(ray.util.get_node_ip_address())
        self._is_draining, self._stays_until = is_draining, 0.0
        configure_cpu(n_threads)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train for one epoch and return a `TrialResult` as a dict.

        A failure is a result, too: only for lost workers, and on a node that is drained, a trial is
        tried again.

        Raises:
            NodeDrainedError: the node is drained.
        """
        if self._pending_result is not None:
            result, self._pending_result = self._pending_result, None
            return result.as_dict()
        self._check_node()
        if self._failure is None:
            try:
                return self._run_epoch().as_dict()
            except Exception as error:
                self._failure = self._describe_failure(error)
        return self._failure.as_dict()

    def _check_node(self) -> None:
        if monotonic() < self._stays_until:
            return
        if self._is_draining():
            raise NodeDrainedError(LEAVES_NODE)
        self._stays_until = monotonic() + _DRAIN_CHECK_SECONDS

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: a checkpoint of every epoch is saved elsewhere."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: a trial begins with its last checkpoint."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._identity = TrialIdentity(self._context.run_id, self._number, dict(config["params"]))
        self._trainer, self._best_weights = None, {}
        release_memory()
        self._pending_result = self._failure = None
        self._trained_seconds = 0.0
        try:
            self._trainer = self._create_trainer(resolve_config(config["params"]), config["epochs"])
            self._resume(self._trainer)
        except Exception as error:
            self._failure = self._describe_failure(error)

    def _create_trainer(self, config: TrialConfig, epochs: int) -> Trainer:
        return create_trainer(
            self._context,
            config,
            self._train_rows,
            self._val_rows,
            seed=self._context.seed * 1_000_003 + self._number,
            epochs=epochs,
            patience=self._context.patience,
            initial_head=self._context.heads.get(config.backbone),
        )

    def _resume(self, trainer: Trainer) -> None:
        """Go back to the last checkpoint, if there is one of this trial that can be read.

        Its epoch is reported once more: the driver may have been lost before it decided on it.
        """
        content = self._checkpoints.load_last(self._number)
        if content is None:
            return
        try:
            state = unpack(self._identity, content) or {}
            of_trainer, result = state["trainer"], TrialResult.from_dict(state["result"])
            self._best_weights = state["best_weights"]
        except (KeyError, TypeError, ValueError, AttributeError):  # damaged, or of another trial
            return  # the trial starts again, and its known epochs are recorded no more
        trainer.load_state_dict(of_trainer)
        self._pending_result = result
        self._trained_seconds = self._pending_result.trained_seconds

    def _run_epoch(self) -> TrialResult:
        trainer = self._trainer
        if trainer is None:
            raise RuntimeError("a trial runs before it has begun")
        epoch = trainer.run_epoch()
        best = trainer.best or epoch
        if best is epoch:
            self._best_weights = trainer.model.member_weights()
        self._trained_seconds += epoch.seconds
        result = TrialResult(
            **vars(epoch),
            best_val_score=best.val_score,
            best_val_accuracy=best.val_accuracy,
            best_val_loss=best.val_loss,
            best_epoch=best.epoch,
            trained_seconds=self._trained_seconds,
            node=self._node,
            finished=trainer.finished,
        )
        if trainer.finished:
            self._submit_weights(best.score)
        state = {
            "trainer": trainer.state_dict(),
            "best_weights": self._best_weights,
            "result": result.as_dict(),
        }
        self._checkpoints.save(self._number, pack(self._identity, state))
        return result

    def _submit_weights(self, score: tuple[float, float]) -> None:
        if self._checkpoints.would_keep(self._number, score):
            content = pack(self._identity, self._best_weights)
            self._checkpoints.submit(self._number, score, content)

    def _describe_failure(self, error: Exception) -> TrialResult:
        """Return the result that reports a failure, or a full disk.

        Raises:
            RayError: the cluster lost something, which is not the trial's failure: it is continued
                in another worker.
        """
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            raise error
        if is_disk_full(error):
            return TrialResult(node=self._node, disk_full="no space left for checkpoints")
        is_expected = isinstance(error, TrainingError)
        reason = str(error) if is_expected else f"{type(error).__name__}: {error}"
        return TrialResult(
            node=self._node,
            failure=reason[:_MAX_REASON],
            traceback="".join(traceback.format_exception(error)),
        )
