"""A trial as Ray Tune sees it: `tune.Trainable` around `training.Trainer`.

The one file of this folder that knows Ray.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from spaces.base import TrialConfig, Value
from trainables.backbones import Backbone, create_backbone
from trainables.images import as_tensor
from trainables.model import Weights
from trainables.training import PictureSet, Trainer
from trainables.viewbank import ViewBank, as_features, build_view, view_magnitude, views_up_to

_CHECKPOINT = "trial.pt"


@dataclass(frozen=True)
class Bench:
    """What all trainings of a run share. Large things are in the object store.

    Attributes:
        table: The packed pictures, uint8 [N, S, S, 3]: a reference, or a file to be mapped.
        labels: int64 [N].
        n_classes: Labels are in [0, n_classes).
        image_size: Side in pixels that a backbone sees.
        flip: Whether a mirrored picture is still of its class.
        weights: By backbone, a reference to its pretrained state dict; one that is missing starts
            from scratch.
        n_views: V, the views of each picture in a bank.
        banks: Actor handle of `search.banks.Banks`; None computes all features as needed.
        heads: By backbone, the probe's head that trainings begin with.
        epochs: The full length of a trial.
        patience: See `Space.patience`.
        seed: Of the run.
    """

    table: Any
    labels: np.ndarray
    n_classes: int
    image_size: int
    flip: bool
    weights: Mapping[str, Any]
    n_views: int
    banks: Any
    heads: Mapping[str, Weights]
    epochs: int
    patience: int | None
    seed: int

    def pictures(self, device: torch.device) -> PictureSet:
        """Open the shared table: without a copy, or once a worker on the GPU where it fits."""
        return PictureSet(
            table=open_table(self.table, device),
            labels=as_tensor(self.labels),
            n_classes=self.n_classes,
            image_size=self.image_size,
            flip=self.flip,
        )

    def bank(self, config: TrialConfig) -> ViewBank | None:
        """Open the bank that a config draws from; None where there is none for it."""
        return self._lend(config.backbone, config.freeze_depth, config.augment)

    def pooled_bank(self, backbone: str) -> ViewBank | None:
        """Open the clean pooled features of a backbone; None where there are none."""
        return self._lend(backbone, 5, 0.0)

    def _lend(self, backbone: str, boundary: int, augment: float) -> ViewBank | None:
        if self.banks is None or boundary == 0:
            return None
        lent = ray.get(
            self.banks.lend.remote(backbone, boundary, views_up_to(augment, self.n_views))
        )
        if lent is None:
            return None
        views, row_of, block_size = lent
        tensors = tuple(tuple(as_features(bits) for bits in ray.get(blocks)) for blocks in views)
        return ViewBank(tensors, self.n_views, as_tensor(ray.get(row_of)), block_size)


GPU_TABLE_SHARE = 0.2
"""Of a GPU's free memory: packed pictures up to that are kept on the card."""

_tables: dict[tuple[Any, torch.device], torch.Tensor] = {}


def open_table(table: Any, device: torch.device) -> torch.Tensor:
    """Open the packed pictures, shared by all workers of a node; a GPU gets its own copy.

    Args:
        table: A reference into the object store, or the path of a file to be mapped.
        device: Where they are wanted. They stay on the CPU where they would crowd the GPU.
    """
    shared = np.load(table, mmap_mode="r") if isinstance(table, Path) else ray.get(table)
    if device.type == "cpu":
        return as_tensor(shared)
    if (table, device) not in _tables:
        free, _ = torch.cuda.mem_get_info(device)
        fits = shared.nbytes <= GPU_TABLE_SHARE * free
        _tables[table, device] = as_tensor(shared).to(device if fits else "cpu")
    return _tables[table, device]


_pristine: dict[tuple[str, torch.device], Backbone] = {}


def fresh_backbone(bench: Bench, name: str, depth: int, device: torch.device) -> Backbone:
    """Return a backbone whose unfrozen stages are a copy of its own; frozen ones are shared.

    A worker reads each backbone's weights once and keeps them for the trials to come.
    """
    if (name, device) not in _pristine:
        reference = bench.weights.get(name)
        state_dict = None if reference is None else ray.get(reference)
        backbone = create_backbone(name, state_dict, seed=bench.seed)
        _pristine[name, device] = backbone.to(device).to(memory_format=torch.channels_last)
    pristine = _pristine[name, device]
    shared = {id(stage): stage for stage in pristine.stages[:depth]}
    return copy.deepcopy(pristine, shared)


def build_block(
    bench: Bench,
    backbone: str,
    rows: np.ndarray,
    view: int,
    n_views: int,
    boundaries: Sequence[int],
    seed: int,
) -> list[np.ndarray]:
    """Compute one view of some pictures, given by their table rows, at each boundary."""
    torch.set_num_threads(threads_of_worker())
    device = training_device()
    network = fresh_backbone(bench, backbone, 5, device).eval()
    pictures = open_table(bench.table, torch.device("cpu"))[torch.from_numpy(rows.copy())]
    kept = build_view(
        network,
        pictures,
        bench.image_size,
        view_magnitude(view, n_views),
        bench.flip,
        boundaries,
        seed,
        device,
    )
    return [kept[boundary] for boundary in boundaries]


def settled(params: Mapping[str, Value]) -> TrialConfig:
    """Read a trial's parameters; a network that has no pretrained weights is never frozen."""
    config = TrialConfig.from_params(params)
    return replace(config, freeze_depth=0) if config.backbone == "cnn" else config


def training_device() -> torch.device:
    """Return the GPU that Ray gave this worker, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def threads_of_worker() -> int:
    """Return how many CPUs Ray gave this worker, at least one."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def create_trainer(
    bench: Bench,
    config: TrialConfig,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    seed: int,
    **options: Any,
) -> Trainer:
    """Set up a training on this worker; options go to `Trainer`."""
    device = training_device()
    return Trainer(
        config,
        fresh_backbone(bench, config.backbone, config.freeze_depth, device),
        bench.pictures(device),
        train_rows,
        val_rows,
        seed=seed,
        bank=bench.bank(config),
        **options,
    )


def _as_file(weights: Weights) -> bytes:
    content = io.BytesIO()
    torch.save(weights, content)
    return content.getvalue()


class ImageTrial(tune.Trainable):
    """One configuration of a search; workers go from one to the next (`reuse_actors`)."""

    _trainer: Trainer
    _best_weights: Weights

    def setup(
        self,
        config: dict[str, Any],
        bench: Bench | None = None,
        train_rows: np.ndarray | None = None,
        val_rows: np.ndarray | None = None,
        keeper: Any = None,
    ) -> None:
        """Begin a trial: `config` has its parameters and the study's number for it."""
        if bench is None or train_rows is None or val_rows is None:
            raise ValueError("ImageTrial needs tune.with_parameters(bench, train_rows, val_rows)")
        self._bench, self._keeper = bench, keeper
        self._train_rows = torch.as_tensor(train_rows.copy())
        self._val_rows = torch.as_tensor(val_rows.copy())
        torch.set_num_threads(threads_of_worker())
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this worker."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train for one epoch."""
        result = self._trainer.run_epoch()
        best = self._trainer.best
        if best is result:
            self._best_weights = self._trainer.model.member_weights()
        if best is None:
            raise RuntimeError("an epoch has ended without a result")
        if self._trainer.finished and self._keeper is not None:
            score = (best.val_accuracy, -best.val_loss)
            if ray.get(self._keeper.wants.remote(self._number, score)):
                ray.get(
                    self._keeper.offer.remote(self._number, score, _as_file(self._best_weights))
                )
        return {
            **vars(result),
            "best_val_accuracy": best.val_accuracy,
            "best_val_loss": best.val_loss,
            "best_epoch": best.epoch,
            "node": str(ray.util.get_node_ip_address()),
            "finished": self._trainer.finished,
            "done": self._trainer.finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write all that the next epoch needs."""
        state = {"trainer": self._trainer.state_dict(), "best_weights": self._best_weights}
        torch.save(state, Path(checkpoint_dir) / _CHECKPOINT)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from `save_checkpoint`."""
        state = torch.load(Path(checkpoint) / _CHECKPOINT, weights_only=True)
        self._trainer.load_state_dict(state["trainer"])
        self._best_weights = state["best_weights"]

    def _begin(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._best_weights = {}
        trial_config = settled(config["params"])
        self._trainer = create_trainer(
            self._bench,
            trial_config,
            self._train_rows,
            self._val_rows,
            seed=self._bench.seed * 1_000_003 + self._number,
            epochs=self._bench.epochs,
            patience=self._bench.patience,
            head_start=self._bench.heads.get(trial_config.backbone),
        )
