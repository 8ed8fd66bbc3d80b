"""Stratified k-fold retraining of the winner, as Ray tasks.

In a fold, the held-out images choose nothing: epochs and learning rates are those of the search.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray
import torch

from search.cluster.nodes import EVERYWHERE
from search.cluster.resources import TrialSlots
from spaces.base import TrialConfig
from trainables.atomic_write import write_atomically
from trainables.compute import compute_with
from trainables.grouped_kfold import grouped_folds
from trainables.models.ensemble import Weights
from trainables.models.linear_probe import fit_head
from trainables.models.ood import MAX_IMAGES, Subspace, fit_subspace, residual
from trainables.worker import TrainingContext, create_trainer, threads_of_worker


@dataclass(frozen=True)
class RetrainConfig:
    """What the search found: a configuration and how long to train it.

    Attributes:
        config: The configuration.
        epochs: Its best epoch; training ends there. 0 leaves the head that it begins with.
        epoch_lrs: The learning rate of each epoch, where a plateau decided it; else None.
    """

    config: TrialConfig
    epochs: int
    epoch_lrs: tuple[float, ...] | None


@dataclass(frozen=True)
class Fold:
    """One fold's outcome.

    Attributes:
        held_out: int64 [n], table rows that this fold did not train on.
        logits: float32 [n, classes] of them.
        residuals: float32 [n], theirs in `subspace`.
        accuracy: On them.
        weights: What the training made.
        subspace: Of its training images' features; see `trainables.models.ood`.
        seconds: Of training and prediction.
        node: Address of the machine that it ran on.
    """

    held_out: np.ndarray
    logits: np.ndarray
    residuals: np.ndarray
    accuracy: float
    weights: Weights
    subspace: Subspace
    seconds: float
    node: str = ""


_COUNT_SECONDS = 10.0
"""How often machines are counted while folds train."""

_ARRAYS = ("held_out", "logits", "residuals")


def split_folds(
    rows: np.ndarray,
    labels: np.ndarray,
    n_folds: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return the held-out rows of each fold, stratified by label, groups whole: every row once."""
    of_rows = None if groups is None else groups[rows]
    return [rows[held_out] for held_out in grouped_folds(labels[rows], of_rows, n_folds, seed)]


def retrain(
    context: TrainingContext,
    retrain_config: RetrainConfig,
    rows: np.ndarray,
    n_folds: int,
    use_probe: bool,
    resources: dict[str, float],
    on_fold: Callable[[int, Fold], None],
    before: Mapping[int, Fold],
) -> list[Fold]:
    """Train the recipe once a fold, in parallel.

    Args:
        context: What all trainings share.
        retrain_config: What to train.
        rows: Table rows of the search's images, training and validation together.
        n_folds: K.
        use_probe: Whether linear heads begin as a probe of the fold's own training images.
        resources: `num_cpus` and `num_gpus` of each fold.
        on_fold: Is told each fold (counted from 0) as it ends.
        before: Folds of an earlier session; those that held out the same images stand.
    """
    held_out = split_folds(rows, context.labels, n_folds, context.seed, context.groups)
    task = _train_fold.options(scheduling_strategy=EVERYWHERE, **resources)
    done = {
        index: fold
        for index, fold in before.items()
        if np.array_equal(fold.held_out, held_out[index])
    }
    # A task that waits for an object gives its CPU back: Ray would begin another fold beside it.
    places = TrialSlots(resources["num_cpus"], [resources["num_gpus"]])
    waiting = [index for index in range(n_folds) if index not in done]
    pending: dict[Any, int] = {}
    while waiting or pending:
        while waiting and len(pending) < places():
            index = waiting.pop(0)
            part = held_out[index]
            work = (context, retrain_config, np.setdiff1d(rows, part), part, use_probe, index)
            pending[task.remote(*work)] = index
        ended, _ = ray.wait(list(pending), timeout=_COUNT_SECONDS)  # a machine may have joined
        for ready in ended:
            index = pending.pop(ready)
            done[index] = ray.get(ready)
            on_fold(index, done[index])
    return [done[index] for index in range(n_folds)]


class FoldStore:
    """Keeps each fold of a recipe as soon as it ends, so that none is trained twice."""

    def __init__(self, folder: Path, name: str, retrain_config: RetrainConfig) -> None:
        """Keep the folds of a candidate's recipe in a folder."""
        self._folder = folder
        config = sorted(vars(retrain_config.config).items())
        text = f"{name} {config} {retrain_config.epochs} {retrain_config.epoch_lrs}"
        self._key = blake2b(text.encode(), digest_size=8).hexdigest()

    def load(self, n_folds: int) -> dict[int, Fold]:
        """Return the folds that are there and whole."""
        found = {}
        for index in range(n_folds):
            try:
                state = torch.load(self._path(index), weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
                continue
            if "subspace" in state:  # which an earlier version did not keep
                arrays = {key: state.pop(key).numpy() for key in _ARRAYS}
                found[index] = Fold(**arrays, **state)
        return found

    def save(self, index: int, fold: Fold) -> None:
        """Keep a fold, counted from 0."""
        arrays = {key: torch.tensor(getattr(fold, key)) for key in _ARRAYS}
        # To a path, torch would not say that the disk is full.
        with write_atomically(self._path(index)) as partial, partial.open("wb") as file:
            torch.save({**vars(fold), **arrays}, file)

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._key}-{index}.pt"


def out_of_fold(folds: Sequence[Fold]) -> tuple[np.ndarray, np.ndarray]:
    """Return all held-out rows, ascending, and their logits."""
    rows = np.concatenate([fold.held_out for fold in folds])
    logits = np.concatenate([fold.logits for fold in folds])
    order = np.argsort(rows)
    return rows[order], logits[order]


@ray.remote(max_retries=3)
def _train_fold(
    context: TrainingContext,
    retrain_config: RetrainConfig,
    train_rows: np.ndarray,
    held_out: np.ndarray,
    use_probe: bool,
    index: int,
) -> Fold:
    started = perf_counter()
    compute_with(threads_of_worker())
    config = retrain_config.config
    rows = torch.from_numpy(train_rows.copy())
    trainer = create_trainer(
        context,
        config,
        rows,
        torch.empty(0, dtype=torch.long),
        seed=context.seed * 1_000_003 + 500_009 + index,
        epochs=context.epochs,
        initial_head=_fold_head(context, config, rows) if use_probe else None,
        epoch_lrs=retrain_config.epoch_lrs,
    )
    while trainer.epoch < retrain_config.epochs:
        trainer.run_epoch()
    features, logits = trainer.predict(torch.from_numpy(held_out.copy()))
    few = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))]
    subspace = fit_subspace(trainer.predict(few[:MAX_IMAGES])[0])
    return Fold(
        held_out=held_out,
        logits=logits.numpy(),
        residuals=residual(features, subspace).numpy(),
        accuracy=float((logits.numpy().argmax(1) == context.labels[held_out]).mean()),
        weights=trainer.model.member_weights(),
        subspace=subspace,
        seconds=perf_counter() - started,
        node=str(ray.util.get_node_ip_address()),
    )


def _fold_head(context: TrainingContext, config: TrialConfig, rows: torch.Tensor) -> Weights | None:
    """Fit the probe's head on a fold's own training images; None where trials had none."""
    if config.hidden_units or config.backbone not in context.heads:
        return None
    cache = context.pooled_bank(config.backbone)
    if cache is None:
        return None
    return fit_head(cache.clean(rows), torch.as_tensor(context.labels)[rows], context.n_classes)
