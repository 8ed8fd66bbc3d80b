"""Tables of real learning curves, to compare searches without training again.

Configurations are drawn at random, one by one, and each is trained in full, as a trial of a search
would be: by the project's own `Trainer`, from cached features, its head beginning as the linear
probe. Kept of every epoch is the result for each image of a pool that was not trained on. So every
split of the pool into validation and test images can be looked up afterwards.

The module is long because building, saving and looking up a table share its layout.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from benchmarks.harness.reporting import log_progress
from benchmarks.harness.workbench import choose_stratified, new_backbone
from spaces.base import Space, TrialConfig
from spaces.rules import Value
from spaces.sources import folder
from trainables.atomic_write import write_atomically
from trainables.batches import ImageSet
from trainables.compute import mixed_precision
from trainables.feature_cache import FeatureCache, as_features, build_view, view_magnitude
from trainables.models.backbones import Backbone
from trainables.models.batchnorm_folding import fold_batchnorm
from trainables.models.classifier import Classifier, Weights
from trainables.models.linear_probe import fit_head
from trainables.trainer import Trainer

BACKBONES = ("squeezenet1_0", "mobilenet_v2")
DEPTHS = (4, 5)
SCHEDULER = "cosine"
SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(BACKBONES),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(min(DEPTHS), max(DEPTHS)),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": SCHEDULER,
    },
)
"""What is searched: that of `spaces/caltech.py`, but for the backbones and the depths."""

_EXACT = ("backbone", "freeze_depth")
_CHANCES = (0.3, 0.3, 0.3, 0.1)
"""Fractions of SqueezeNet and MobileNetV2 at depth 5, then at depth 4: the last takes by far the
longest to train, so a table has fewer of it."""
_LR_WEIGHT = 3.0  # in a distance: the learning rate decides most
_KEEP_EVERY = 10  # configurations after which the file is written
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TableConfig:
    """How a table is made; tables of different configurations do not mix.

    Attributes:
        name: Name of the set.
        n_train: Images to train on, the same fraction of each class.
        n_pool: Maximum number of images to evaluate on, drawn the same way from the others.
        n_val: How many of those validate; the others are test images.
        image_size: Side in pixels that a backbone sees.
        epochs: Epochs of every training.
        n_views: Augmented views in the feature cache.
    """

    name: str
    n_train: int
    n_pool: int
    n_val: int
    image_size: int
    epochs: int
    n_views: int = 8


@dataclass(frozen=True)
class View:
    """A table as one search sees it: the pool split into validation and test images.

    Attributes:
        val_accuracy: float64 [configurations, epochs].
        val_loss: Mean cross-entropy in nats, alike.
        test_accuracy: Accuracy on the test images, alike.
        seconds: Seconds of an epoch, by configuration.
    """

    val_accuracy: np.ndarray
    val_loss: np.ndarray
    test_accuracy: np.ndarray
    seconds: np.ndarray

    def best_epochs(self) -> np.ndarray:
        """Return each configuration's best epoch, counted from 0: int64 [configurations].

        Equal accuracies go to the lower loss, as in a search.
        """
        order = np.lexsort((self.val_loss, -self.val_accuracy), axis=1)
        return order[:, 0]


@dataclass(frozen=True, eq=False)
class CurveTable:
    """Learning curves of configurations, image by image.

    Attributes:
        config: How it was made.
        params: Each configuration's searched parameters.
        labels: int64 [pool].
        right: bool [configurations, epochs, pool], whether an image was classified correctly.
        loss: float16 alike, its cross-entropy in nats.
        seconds: Processor time of an epoch without evaluation, by configuration.
    """

    config: TableConfig
    params: tuple[Mapping[str, Value], ...]
    labels: np.ndarray
    right: np.ndarray
    loss: np.ndarray
    seconds: np.ndarray

    def __post_init__(self) -> None:
        members: dict[tuple[Value, ...], list[int]] = {}
        for row, params in enumerate(self.params):
            members.setdefault(tuple(params[name] for name in _EXACT), []).append(row)
        places = np.array([_place(params) for params in self.params])
        cells = {key: (np.array(rows), places[rows]) for key, rows in members.items()}
        object.__setattr__(self, "_cells", cells)

    def split(self, seed: int) -> View:
        """Split the pool, each class alike, into validation and test images."""
        val = choose_stratified(self.labels, self.config.n_val, seed)
        test = np.setdiff1d(np.arange(len(self.labels)), val)
        return View(
            self.right[:, :, val].mean(2),
            self.loss[:, :, val].mean(2, dtype=np.float64),
            self.right[:, :, test].mean(2),
            self.seconds,
        )

    def nearest(self, params: Mapping[str, Value], taken: Collection[int] = ()) -> int:
        """Return the row of the nearest configuration of the same backbone and depth.

        Nearness is Euclidean over the other parameters, each scaled to [0, 1] over its range, the
        learning rate counted three times. An answer is so always a curve that was really trained,
        with the noise of a real training; a fitted surface would have none.

        Args:
            params: What is proposed.
            taken: Rows that are not to be returned: a second training of much the same comes out
                otherwise, so a search is to see no curve twice. Where all rows of the backbone and
                depth are taken, any may come again.
        """
        rows, places = self._cells[tuple(params[name] for name in _EXACT)]  # type: ignore[attr-defined]
        distances = ((places - _place(params)) ** 2).sum(1)
        free = ~np.isin(rows, list(taken))
        return int(rows[np.argmin(np.where(free, distances, np.inf) if free.any() else distances)])

    def neighbour_correlation(self) -> float:
        """Return how well a row's nearest other row predicts it: Spearman's rank correlation.

        Of the loss at each row's best epoch, over the whole pool. 1 is a table without gaps; 0 a
        table whose curves do not depend on what is proposed.
        """
        from scipy.stats import spearmanr

        loss = self.loss.mean(2, dtype=np.float64).min(1)
        neighbours = np.empty(len(loss), np.int64)
        for rows, places in self._cells.values():  # type: ignore[attr-defined]
            distances = ((places[:, None] - places[None]) ** 2).sum(2)
            np.fill_diagonal(distances, np.inf)
            neighbours[rows] = rows[distances.argmin(1)]
        return float(spearmanr(loss, loss[neighbours]).statistic)

    def save(self, path: Path) -> None:
        """Write the table atomically."""
        with write_atomically(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                about=json.dumps({"config": vars(self.config), "params": self.params}),
                labels=self.labels,
                right=np.packbits(self.right),
                loss=self.loss,
                seconds=self.seconds,
            )


def load_table(path: Path) -> CurveTable:
    """Read a table that `CurveTable.save` wrote."""
    with np.load(path) as kept:
        about = json.loads(str(kept["about"]))
        loss = kept["loss"]
        right = np.unpackbits(kept["right"], count=loss.size).astype(bool).reshape(loss.shape)
        return CurveTable(
            TableConfig(**about["config"]),
            tuple(about["params"]),
            kept["labels"],
            right,
            loss,
            kept["seconds"],
        )


def draw_params(number: int) -> dict[str, Value]:
    """Draw a configuration of the space, the same for the same number."""
    rng = np.random.default_rng(number)

    def between(name: str) -> float:
        distribution = SPACE.params[name]
        assert isinstance(distribution, FloatDistribution)
        low, high = distribution.low, distribution.high
        if distribution.log:
            return float(math.exp(rng.uniform(math.log(low), math.log(high))))
        return float(rng.uniform(low, high))

    cells = [(backbone, depth) for depth in reversed(DEPTHS) for backbone in BACKBONES]
    backbone, depth = cells[rng.choice(len(cells), p=_CHANCES)]
    return {
        "backbone": backbone,
        "lr": between("lr"),
        "freeze_depth": depth,
        "dropout": between("dropout"),
        "augment": between("augment"),
        "weight_decay": between("weight_decay"),
    }


def split_set(config: TableConfig, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose what is trained on and the pool: int64 indices, each ascending."""
    train = np.sort(choose_stratified(labels, config.n_train, seed=0))
    others = np.setdiff1d(np.arange(len(labels)), train)
    pool = others[choose_stratified(labels[others], config.n_pool, seed=0)]
    return train, np.sort(pool)


def extend_table(
    path: Path,
    config: TableConfig,
    images: ImageSet,
    states: Mapping[str, Weights | None],
    n_configs: int,
) -> CurveTable:
    """Train the configurations that a table lacks; it is written as it grows.

    Args:
        path: Where it is kept. A table that is there is extended; it must have the same config.
        config: How it is made.
        images: All of the set.
        states: Pretrained weights by backbone; None starts from scratch.
        n_configs: How many configurations it is to hold.

    Raises:
        ValueError: the table that is there has another config.
    """
    table = load_table(path) if path.exists() else None
    if table is not None and table.config != config:
        raise ValueError(f"{path} was made by {table.config}, not {config}: remove it first")
    n_there = 0 if table is None else len(table.params)
    if table is not None and n_there >= n_configs:
        return table
    builder = _TableBuilder(config, images, states)
    while n_there < n_configs:
        numbers = range(n_there, min(n_there + _KEEP_EVERY, n_configs))
        table = _joined(table, builder.train_all(numbers))
        table.save(path)
        n_there = len(table.params)
        log_progress(f"{config.name}: {n_there} of {n_configs} configurations")
    assert table is not None
    return table


class _TableBuilder:
    """Trains configurations of one set; its feature caches are built once."""

    def __init__(
        self, config: TableConfig, images: ImageSet, states: Mapping[str, Weights | None]
    ) -> None:
        self._config, self._images = config, images
        train, pool = split_set(config, images.labels.numpy())
        self._train, self._pool = torch.from_numpy(train), torch.from_numpy(pool)
        self._networks: dict[str, Backbone] = {}
        self._caches: dict[tuple[str, int], FeatureCache] = {}
        self._clean: dict[tuple[str, int], Tensor] = {}
        self._heads: dict[str, Weights] = {}
        for name in BACKBONES:
            self._networks[name] = new_backbone(name, states[name])
            network = fold_batchnorm(self._networks[name])
            views = [self._features(network, self._train, v) for v in range(config.n_views)]
            clean = self._features(network, self._pool, 0)
            row_of = torch.full((len(images.table),), -1)
            row_of[self._train] = torch.arange(len(train))
            for depth in DEPTHS:
                blocks = tuple((as_features(view[depth]),) for view in views)
                self._caches[name, depth] = FeatureCache(blocks, config.n_views, row_of, len(train))
                maps = as_features(clean[depth])
                self._clean[name, depth] = maps.permute(0, 3, 1, 2) if maps.dim() == 4 else maps
            features = self._caches[name, 5].clean(self._train)
            labels = images.labels[self._train]
            self._heads[name] = fit_head(features, labels, images.n_classes)
            log_progress(f"{config.name}: cached features of {name}")

    def train_all(self, numbers: Sequence[int]) -> CurveTable:
        """Train configurations; return their table."""
        params = tuple(draw_params(number) for number in numbers)
        found = [
            self._train_one(each, number) for each, number in zip(params, numbers, strict=True)
        ]
        return CurveTable(
            self._config,
            params,
            self._images.labels[self._pool].numpy(),
            np.stack([right for right, _, _ in found]),
            np.stack([loss for _, loss, _ in found]),
            np.array([seconds for _, _, seconds in found]),
        )

    def _train_one(
        self, params: Mapping[str, Value], number: int
    ) -> tuple[np.ndarray, np.ndarray, float]:
        config = TrialConfig.from_params({**params, "scheduler": SCHEDULER})
        key = (config.backbone, config.freeze_depth)
        trainer = Trainer(
            config,
            self._fresh(config),
            self._images,
            self._train,
            self._train[:0],
            self._config.epochs,
            seed=number,
            cache=self._caches[key],
            initial_head=self._heads[config.backbone],
        )
        labels = self._images.labels[self._pool]
        right, losses, seconds = [], [], 0.0
        for _ in range(self._config.epochs):
            started = process_time()
            trainer.run_epoch()
            seconds += process_time() - started
            logits = _logits(trainer.model, self._clean[key], config.freeze_depth)
            right.append((logits.argmax(1) == labels).numpy())
            loss = F.cross_entropy(logits, labels, reduction="none")
            losses.append(loss.clamp_max(1e4).half().numpy())
        return np.stack(right), np.stack(losses), seconds / self._config.epochs

    def _fresh(self, config: TrialConfig) -> Backbone:
        """Copy a backbone; stages that stay frozen are shared."""
        network = self._networks[config.backbone]
        shared = {id(stage): stage for stage in network.stages[: config.freeze_depth]}
        return copy.deepcopy(network, shared)

    def _features(self, network: Backbone, rows: Tensor, view: int) -> dict[int, np.ndarray]:
        """Compute one view of some images at every depth."""
        return build_view(
            network,
            self._images.table[rows],
            self._images.image_size,
            view_magnitude(view, self._config.n_views),
            self._images.flip,
            DEPTHS,
            view,
            torch.device("cpu"),
        )


@torch.no_grad()
def _logits(model: Classifier, features: Tensor, depth: int) -> Tensor:
    """Return logits from clean features at a depth: float32 [n, classes]."""
    model.eval()
    parts = []
    for batch in features.split(_EVALUATION_BATCH):
        with mixed_precision(torch.device("cpu")):
            parts.append(model(batch, depth).float())
    return torch.cat(parts)


def _joined(first: CurveTable | None, second: CurveTable) -> CurveTable:
    if first is None:
        return second
    both = (first, second)
    return CurveTable(
        first.config,
        tuple(itertools.chain(first.params, second.params)),
        first.labels,
        np.concatenate([table.right for table in both]),
        np.concatenate([table.loss for table in both]),
        np.concatenate([table.seconds for table in both]),
    )


def _place(params: Mapping[str, Any]) -> np.ndarray:
    """Return where a configuration lies: float64 [parameters]."""
    place = []
    for name, distribution in SPACE.params.items():
        if name in _EXACT or not isinstance(distribution, FloatDistribution):
            continue
        value, low, high = float(params[name]), distribution.low, distribution.high
        if distribution.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        place.append((value - low) / (high - low) * (_LR_WEIGHT if name == "lr" else 1.0))
    return np.array(place)
