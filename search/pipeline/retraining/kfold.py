"""Retrain a configuration by stratified k-fold cross-validation, one Ray task per fold.

Folds are of the training and the validation images. The validation images have chosen the trial,
its best epoch and a plateau's learning rates, and folds leave them out, too, so that the accuracy
of the folds is a little optimistic: see `search.runs.summary.KFoldScores`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from search.cluster.nodes import EVERYWHERE
from search.cluster.resources import TrialSlots, assigned_cpus
from search.console.formatting import first_line
from spaces.base import TrialConfig
from trainables.atomic_write import write_atomically
from trainables.compute import configure_cpu
from trainables.grouped_kfold import grouped_folds
from trainables.models.classifier import Weights
from trainables.models.linear_probe import fit_head
from trainables.models.ood import MAX_SUBSPACE_IMAGES, Subspace, fit_subspace, residual
from trainables.worker import TrainingContext, create_trainer

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_COUNT_SECONDS = 10.0
"""How often nodes are counted while folds train."""

_ARRAYS = ("rows", "logits", "residuals")


class FoldError(RuntimeError):
    """A fold could not be trained; the message says why."""


@dataclass(frozen=True)
class RetrainConfig:
    """How to retrain a trial.

    Attributes:
        config: Its configuration.
        epochs: Where training ends: see `search.tuning.study.retrain_epochs`. 0 leaves the head as
            it is initialised.
        length: The full length, which the learning-rate schedule is of.
        epoch_lrs: The learning rate of each epoch, where a plateau decided it; else None.
    """

    config: TrialConfig
    epochs: int
    length: int
    epoch_lrs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Fold:
    """A training on all folds but one.

    Attributes:
        rows: int64 [n], table rows of the fold that was not trained on.
        logits: float32 [n, classes] of these.
        residuals: float32 [n], theirs in `subspace`.
        accuracy: Accuracy on these.
        weights: Weights of the trained member.
        subspace: Subspace of its training images' features; see `trainables.models.ood`.
        seconds: Seconds of training and prediction.
        node: Address of the node that trained it.
    """

    rows: np.ndarray
    logits: np.ndarray
    residuals: np.ndarray
    accuracy: float
    weights: Weights
    subspace: Subspace
    seconds: float
    node: str


def split_folds(
    rows: np.ndarray,
    labels: np.ndarray,
    n_folds: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Divide rows into folds, stratified by label; groups of near-duplicates stay in one fold."""
    of_rows = None if groups is None else groups[rows]
    return [rows[fold] for fold in grouped_folds(labels[rows], of_rows, n_folds, seed)]


def retrain(
    context: TrainingContext,
    retrain_config: RetrainConfig,
    rows: np.ndarray,
    n_folds: int,
    use_probe: bool,
    resources: dict[str, float],
    on_fold: Callable[[int, Fold], None],
    before: Mapping[int, Fold],
    has_time: Callable[[float, int], bool] = lambda seconds, n_folds: True,
) -> list[Fold]:
    """Train a configuration once per fold, in parallel; on fewer folds where time is up.

    Args:
        context: What all trainings have in common.
        retrain_config: What to train.
        rows: Table rows of the training and validation images.
        n_folds: Number of folds.
        use_probe: Whether linear heads are initialised by a probe of the fold's training images.
        resources: `num_cpus` and `num_gpus` of each training.
        on_fold: Called with each fold, counted from 0, as it ends.
        before: Folds of an earlier session; those that left out the same images are reused.
        has_time: Returns whether there is time for a fold that takes so many seconds, given the
            number of folds that there would be with it. At least one fold is trained.

    Returns:
        The folds that were trained, at least one, in order.

    Raises:
        FoldError: a fold cannot be trained.
    """
    fold_rows = split_folds(rows, context.labels, n_folds, context.seed, context.groups)
    task = train_fold.options(scheduling_strategy=EVERYWHERE, **resources)
    done = {
        index: fold for index, fold in before.items() if np.array_equal(fold.rows, fold_rows[index])
    }
    # A task that waits for an object gives its CPU back, so Ray would start one more beside it.
    slots = TrialSlots(resources["num_cpus"], [resources["num_gpus"]])
    waiting = [index for index in range(n_folds) if index not in done]
    pending: dict[Any, int] = {}
    while waiting or pending:
        while waiting and len(pending) < slots():
            longest = max((fold.seconds for fold in done.values()), default=0.0)
            is_gap = any(other > waiting[0] for other in done)  # finalists share their first folds
            n_with_it = len(done) + len(pending) + 1
            if n_with_it > 1 and not is_gap and not has_time(longest, n_with_it):
                waiting.clear()
                break
            index = waiting.pop(0)
            fold = fold_rows[index]
            work = (context, retrain_config, np.setdiff1d(rows, fold), fold, use_probe, index)
            pending[task.remote(*work)] = index
        ended, _ = ray.wait(list(pending), timeout=_COUNT_SECONDS)  # a node may have joined
        for ready in ended:
            index = pending.pop(ready)
            try:
                done[index] = ray.get(ready)
            except RayError as error:
                for task_left in pending:
                    ray.cancel(task_left)
                raise FoldError(f"fold {index + 1} cannot be trained: {reason(error)}") from error
            on_fold(index, done[index])
    return [done[index] for index in sorted(done)]


def reason(error: RayError) -> str:
    """Return in one line why a task failed: its own error's kind and message, or Ray's."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {first_line(cause)}"


class FoldStore:
    """Saves the folds of one finalist as they end, so that a resumed run trains none twice."""

    def __init__(self, folder: Path, name: str, retrain_config: RetrainConfig) -> None:
        """Open a store.

        Args:
            folder: Has the files of all finalists.
            name: The finalist's name.
            retrain_config: How it is retrained; folds of another configuration are not found.
        """
        self._folder = folder
        config = sorted(vars(retrain_config.config).items())
        schedule = retrain_config.epochs, retrain_config.length, retrain_config.epoch_lrs
        text = f"{name} {config} {schedule}"
        self._key = blake2b(text.encode(), digest_size=8).hexdigest()

    def load(self, n_folds: int) -> dict[int, Fold]:
        """Return the saved folds, by their index from 0; damaged files are ignored."""
        found = {}
        for index in range(n_folds):
            fold = load_state(self._path(index), _as_fold)
            if fold is not None:
                found[index] = fold
        return found

    def save(self, index: int, fold: Fold) -> None:
        """Save a fold, counted from 0."""
        arrays = {key: torch.tensor(getattr(fold, key)) for key in _ARRAYS}
        save_state(self._path(index), {**vars(fold), **arrays})

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._key}-{index}.pt"


def count_correct(folds: Sequence[Fold]) -> int:
    """Return the number of images whose class was predicted by the training that left them out."""
    return sum(round(fold.accuracy * len(fold.rows)) for fold in folds)


def _as_fold(state: dict[str, Any]) -> Fold:
    arrays = {key: state.pop(key).numpy() for key in _ARRAYS}
    return Fold(**arrays, **state)


def save_state(path: Path, content: object) -> None:
    """Write tensors that a resumed run reuses, atomically."""
    # To a path, torch would not say that the disk is full.
    with write_atomically(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def load_state(path: Path, parse: Callable[[Any], _T]) -> _T | None:
    """Read what `save_state` wrote, and parse it; None without a file, or for a damaged one."""
    try:
        return parse(torch.load(path, weights_only=True))
    except FileNotFoundError:
        return None
    except Exception as error:  # torch and `parse` raise nearly anything on damaged bytes
        _log.warning("%s is damaged, and what it held is trained again: %s", path, error)
        return None


def mean_accuracy(folds: Sequence[Fold]) -> float:
    """Return the mean accuracy of folds, weighted by their images."""
    return count_correct(folds) / sum(len(fold.rows) for fold in folds)


def out_of_fold(folds: Sequence[Fold]) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows, ascending, and the logits of the trainings that left them out."""
    rows = np.concatenate([fold.rows for fold in folds])
    logits = np.concatenate([fold.logits for fold in folds])
    order = np.argsort(rows)
    return rows[order], logits[order]


@ray.remote(max_retries=3)
def train_fold(
    context: TrainingContext,
    retrain_config: RetrainConfig,
    train_rows: np.ndarray,
    fold_rows: np.ndarray,
    use_probe: bool,
    index: int,
) -> Fold:
    """Train one fold, counted from 0, and predict the images that it leaves out."""
    started = perf_counter()
    configure_cpu(assigned_cpus())
    config = retrain_config.config
    rows = torch.from_numpy(train_rows.copy())
    trainer = create_trainer(
        context,
        config,
        rows,
        torch.empty(0, dtype=torch.long),
        seed=context.seed * 1_000_003 + 500_009 + index,
        epochs=retrain_config.length,
        initial_head=_fold_head(context, config, rows) if use_probe else None,
        epoch_lrs=retrain_config.epoch_lrs,
    )
    while trainer.epoch < retrain_config.epochs:
        trainer.run_epoch()
    features, logits = trainer.predict(torch.from_numpy(fold_rows.copy()))
    few = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))]
    subspace = fit_subspace(trainer.predict(few[:MAX_SUBSPACE_IMAGES])[0])
    return Fold(
        rows=fold_rows,
        logits=logits.numpy(),
        residuals=residual(features, subspace).numpy(),
        accuracy=float((logits.numpy().argmax(1) == context.labels[fold_rows]).mean()),
        weights=trainer.model.member_weights(),
        subspace=subspace,
        seconds=perf_counter() - started,
        node=str(ray.util.get_node_ip_address()),
    )


def _fold_head(context: TrainingContext, config: TrialConfig, rows: torch.Tensor) -> Weights | None:
    """Fit a probe's head on a fold's training images; None where trials had no such head."""
    if config.hidden_units or config.backbone not in context.heads:
        return None
    cache = context.pooled_features(config.backbone)
    if cache is None:
        return None
    return fit_head(cache.clean(rows), torch.as_tensor(context.labels)[rows], context.n_classes)
