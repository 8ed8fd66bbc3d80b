import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from spaces.base import TrialConfig
from spaces.rules import Metric
from trainables import batches, trainer
from trainables.batches import CachedBatches, ImageSet
from trainables.feature_cache import FeatureCache, as_features, build_view, view_magnitude
from trainables.metrics import compute_score
from trainables.models.backbones import Backbone, create_backbone
from trainables.optimization import cosine_with_warmup
from trainables.pretrained.weights import PACKAGED, load_weights
from trainables.trainer import Trainer, TrainingError, balanced_class_weights
from trainables.trial_result import EpochResult

CPU = torch.device("cpu")
N_CLASSES, N_IMAGES, N_TRAIN = 3, 72, 48
STANDSTILL = 1e-30
"""A learning rate that changes no weight."""

TIMES = ("seconds", "images_per_second", "gpu_memory_mb")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Three shapes in noise: a lying bar, a standing bar, a square."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 100, (N_IMAGES, 32, 32, 3), generator=generator)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    for index, label in enumerate(labels.tolist()):
        width, height = ((18, 5), (5, 18), (11, 11))[label]
        x, y = torch.randint(3, 12, (2,), generator=generator).tolist()
        table[index, y : y + height, x : x + width] += 155
    return ImageSet(table.to(torch.uint8), labels, N_CLASSES, 32, flip=True)


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    return load_weights(PACKAGED["tinynet"])


@pytest.fixture(scope="module")
def new_backbone(pretrained: dict[str, Tensor]) -> Callable[[], Backbone]:
    def build() -> Backbone:
        backbone = create_backbone("tinynet", pretrained)
        return backbone.to(memory_format=torch.channels_last)

    return build


@pytest.fixture(scope="module")
def feature_cache(
    images: ImageSet, new_backbone: Callable[[], Backbone]
) -> dict[int, FeatureCache]:
    """Four views of all images at two depths."""
    backbone = new_backbone()
    backbone.freeze(5)
    built = [
        build_view(
            backbone.eval(), images.table, 32, view_magnitude(view, 4), True, (3, 5), view, CPU
        )
        for view in range(4)
    ]
    return {
        depth: FeatureCache(
            tuple(as_features(bits[depth]).split(50) for bits in built),
            4,
            torch.arange(N_IMAGES),
            block_size=50,
        )
        for depth in (3, 5)
    }


@pytest.fixture
def create(
    images: ImageSet,
    new_backbone: Callable[[], Backbone],
    feature_cache: dict[int, FeatureCache],
) -> Callable[..., Trainer]:
    """Create a trainer; keywords that are fields of `TrialConfig` go into the config."""

    def build(use_cache: bool = True, seed: int = 0, **given: Any) -> Trainer:
        known = TrialConfig.__dataclass_fields__
        config = TrialConfig(
            **{
                "backbone": "tinynet",
                "batch_size": 16,
                **{key: value for key, value in given.items() if key in known},
            }
        )
        options = {
            "images": images,
            "train_rows": torch.arange(N_TRAIN),
            "val_rows": torch.arange(N_TRAIN, N_IMAGES),
            "epochs": 4,
            "cache": feature_cache.get(config.freeze_depth) if use_cache else None,
            **{key: value for key, value in given.items() if key not in known},
        }
        backbone = options.pop("backbone_net", None) or new_backbone()
        return Trainer(config, backbone, seed=seed, **options)

    return build


def run(trainer: Trainer) -> list[EpochResult]:
    results = []
    while not trainer.finished:
        results.append(trainer.run_epoch())
    return results


def without_times(results: list[EpochResult]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(r).items() if k not in TIMES} for r in results]


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


# Learning


def test_training_from_scratch_learns(create):
    net = create_backbone("tinynet", seed=0).to(memory_format=torch.channels_last)
    trainer = create(backbone_net=net, lr=3e-3, freeze_depth=0, epochs=8, augment=0.1)
    results = run(trainer)
    assert [result.epoch for result in results] == list(range(1, 9))
    assert results[-1].train_loss < 0.5 * results[0].train_loss
    assert trainer.best is not None
    assert trainer.best.val_accuracy >= 0.9
    assert trainer.best.val_accuracy == max(result.val_accuracy for result in results)
    assert all(r.seconds > 0 and r.images_per_second > 0 for r in results)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("scheduler", ["none", "plateau", "cosine"])
def test_every_optimizer_and_schedule_learns(create, optimizer, scheduler):
    trainer = create(
        optimizer=optimizer,
        scheduler=scheduler,
        lr=0.1 if optimizer == "sgd" else 0.02,
        weight_decay=1e-4,
        dropout=0.1,
        augment=0.4,
        epochs=10,
    )
    results = run(trainer)
    assert results[-1].train_loss < 0.6 * results[0].train_loss
    assert results[-1].train_accuracy > 0.85


def test_a_dense_head_learns_with_all_regularisation(create):
    trainer = create(
        hidden_units=32,
        dropout=0.2,
        mixup=0.3,
        label_smoothing=0.1,
        class_weights=True,
        augment=1.0,
        lr=0.01,
        epochs=12,
    )
    results = run(trainer)
    assert results[-1].train_loss < results[0].train_loss
    assert results[-1].val_accuracy > 0.8


def test_validation_metrics_match_the_predictions(create, images):
    trainer = create(lr=1e-3)
    result = trainer.run_epoch()
    rows = torch.arange(N_TRAIN, N_IMAGES)
    logits, labels = trainer.predict_logits(rows), images.labels[rows]
    assert logits.shape == (N_IMAGES - N_TRAIN, N_CLASSES)
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    predicted = logits.argmax(1)
    assert 0 < result.val_accuracy < 1, "an accuracy of 1 would hide mistakes"
    assert result.val_accuracy == pytest.approx(float((predicted == labels).float().mean()))
    assert result.val_loss == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert result.val_macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert result.val_score == result.val_accuracy


def test_predictions_are_without_dropout_and_of_each_image_alone(create):
    trainer = create(freeze_depth=3, hidden_units=16, dropout=0.6)
    trainer.run_epoch()
    rows = torch.arange(N_TRAIN, N_IMAGES)
    logits = trainer.predict_logits(rows)
    assert torch.equal(trainer.predict_logits(rows), logits)
    alone = torch.cat([trainer.predict_logits(row) for row in rows.split(1)])
    torch.testing.assert_close(alone, logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("metric", "best_epoch"),
    [("accuracy", 2), ("balanced_accuracy", 1), ("macro_f1", 1), ("log_loss", 1), ("roc_auc", 1)],
)
def test_the_metric_rules_best_epoch_and_patience(create, images, metric: Metric, best_epoch: int):
    by_class = [torch.arange(N_IMAGES)[images.labels == label] for label in range(N_CLASSES)]
    rows = torch.cat([by_class[0][:18], by_class[1][:3], by_class[2][:3]])
    labels = images.labels[rows]
    some_wrong = torch.where(torch.arange(24) % 3 == 0, (labels + 1) % 3, labels)
    predicted = [some_wrong, torch.zeros_like(labels), *[(labels + 1) % 3] * 6]
    logits = [
        scale * F.one_hot(classes, N_CLASSES).float()
        for scale, classes in zip([1, *[9] * 7], predicted, strict=True)
    ]
    trainer = create(val_rows=rows, epochs=8, patience=2, metric=metric)
    trainer.predict_logits = lambda _: logits[trainer.epoch - 1]
    results = run(trainer)
    assert trainer.best is results[best_epoch - 1]
    assert len(results) == best_epoch + 2
    scores = [compute_score(metric, one.numpy(), labels.numpy()) for one in logits]
    assert [result.val_score for result in results] == scores[: len(results)]


# Loss


def first_loss(trainer: Trainer) -> float:
    """Return the training loss of the first epoch."""
    return trainer.run_epoch().train_loss


def test_label_smoothing_is_in_the_loss(create, images):
    still = {"lr": STANDSTILL, "batch_size": N_TRAIN, "hidden_units": 16}
    rows = torch.arange(N_TRAIN)
    logits = create(**still).predict_logits(rows)
    plain, smooth = (
        float(F.cross_entropy(logits, images.labels[rows], label_smoothing=smoothing))
        for smoothing in (0.0, 0.3)
    )
    assert first_loss(create(**still)) == pytest.approx(plain, rel=1e-4)
    assert first_loss(create(**still, label_smoothing=0.3)) == pytest.approx(smooth, rel=1e-4)
    assert smooth != pytest.approx(plain, rel=1e-3)


def test_mixup_blends_inputs_and_targets(create):
    still = {"lr": STANDSTILL, "batch_size": N_TRAIN}
    weight = torch.randn(N_CLASSES, 128, generator=torch.Generator().manual_seed(0))
    head = {"weight": weight, "bias": torch.zeros(N_CLASSES)}
    plain = first_loss(create(**still, initial_head=head))
    mixed = first_loss(create(**still, initial_head=head, mixup=1.0))
    assert mixed != pytest.approx(plain, rel=1e-3)
    almost_none = [
        first_loss(create(**still, initial_head=head, mixup=1e-4, seed=seed)) for seed in range(3)
    ]
    # Beta(1e-4, 1e-4) draws 0 or 1, so that inputs are permuted and not blended.
    assert almost_none == pytest.approx([plain] * 3, rel=1e-4)


def test_class_weights_equal_scikit_learns_balanced_weights(create, images):
    rows = torch.cat([torch.arange(0, 30, 3), torch.arange(1, 10, 3), torch.tensor([2])])
    trainer = create(class_weights=True, train_rows=rows, lr=STANDSTILL, batch_size=64)
    labels = images.labels[rows]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    weights = balanced_class_weights(labels, N_CLASSES)
    assert weights.tolist() == pytest.approx(expected.tolist())
    loss = F.cross_entropy(trainer.predict_logits(rows), labels, torch.from_numpy(expected).float())
    assert first_loss(trainer) == pytest.approx(float(loss), rel=1e-4)


def test_class_weights_are_finite_for_a_class_without_images(create):
    trainer = create(class_weights=True, train_rows=torch.tensor([0, 1, 3, 4]))
    assert math.isfinite(trainer.run_epoch().train_loss)


@pytest.mark.parametrize("depth", [0, 5])
def test_run_epoch_raises_if_the_training_loss_diverges(create, depth):
    trainer = create(freeze_depth=depth, lr=1e38, optimizer="sgd")
    reason = r"^the training loss is (nan|inf) in epoch \d \(lr 1e\+38, sgd\)$"
    with pytest.raises(TrainingError, match=reason):
        run(trainer)


def test_run_epoch_raises_if_the_validation_loss_diverges(create):
    trainer = create(freeze_depth=0, lr=1e38, optimizer="sgd", batch_size=64, epochs=1)
    with pytest.raises(TrainingError, match=r"^the validation loss is nan in epoch 1 \(lr 1e\+38"):
        run(trainer)
    assert trainer.best is None


# Learning rates


def test_the_learning_rate_follows_the_cosine(create):
    results = run(create(scheduler="cosine", lr=0.01))
    assert [r.lr for r in results] == pytest.approx(
        [0.01 * cosine_with_warmup(step, 12) for step in (2, 5, 8, 11)]
    )


def test_the_learning_rate_is_constant_without_a_schedule(create):
    assert [r.lr for r in run(create(lr=0.02))] == [0.02] * 4


def test_a_plateau_reduces_the_learning_rate_after_its_patience(create):
    results = run(create(scheduler="plateau", lr=STANDSTILL, optimizer="sgd", epochs=9))
    steps = [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert [r.lr for r in results] == pytest.approx(
        [STANDSTILL * s for s in steps], rel=1e-6, abs=0
    )


def test_a_decreasing_loss_is_no_plateau(create):
    results = run(create(scheduler="plateau", lr=1e-4, epochs=6))
    losses = [result.val_loss for result in results]
    assert losses == sorted(losses, reverse=True)
    assert {result.lr for result in results} == {1e-4}


@pytest.mark.parametrize("scheduler", ["plateau", "none"])
def test_epoch_lrs_replace_the_schedule(create, scheduler):
    lrs = [0.1, 0.01, 0.05, 0.002]
    results = run(create(scheduler=scheduler, lr=3.0, epoch_lrs=lrs))
    assert [result.lr for result in results] == lrs


# Length


def test_patience_ends_a_training_without_improvement(create):
    trainer = create(lr=STANDSTILL, optimizer="sgd", epochs=9, patience=2)
    assert len(run(trainer)) == 3
    assert trainer.best is not None
    assert trainer.best.epoch == 1


def test_a_training_without_patience_has_its_full_length(create):
    assert len(run(create(lr=STANDSTILL, optimizer="sgd", epochs=6))) == 6


def test_validation_metrics_are_nan_without_validation_images(create):
    trainer = create(val_rows=torch.empty(0, dtype=torch.long), epochs=2)
    for result in run(trainer):
        assert math.isnan(result.val_loss)
        assert math.isnan(result.val_accuracy)
        assert math.isnan(result.val_macro_f1)
        assert math.isfinite(result.train_loss)


# Resuming

RESUMED = {
    "unfrozen, from images": {
        "freeze_depth": 1,
        "dropout": 0.3,
        "augment": 0.5,
        "mixup": 0.2,
        "scheduler": "cosine",
        "lr": 3e-3,
        "class_weights": True,
    },
    "a head, from the cache": {
        "freeze_depth": 5,
        "hidden_units": 16,
        "dropout": 0.5,
        "augment": 1.0,
        "scheduler": "plateau",
        "optimizer": "sgd",
        "lr": 0.1,
    },
    "on a plateau": {"scheduler": "plateau", "optimizer": "sgd", "lr": STANDSTILL},
}


@pytest.mark.parametrize("given", RESUMED.values(), ids=RESUMED)
def test_a_resumed_training_equals_an_uninterrupted_one(create, given):
    uninterrupted = create(**given, epochs=6, patience=5)
    first = create(**given, epochs=6, patience=5)
    expected = run(uninterrupted)
    begun = [first.run_epoch() for _ in range(2)]
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    run(first)  # the saved state must not change with the training
    second = create(**given, epochs=6, patience=5)
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert (second.epoch, second.best) == (2, begun[-1] if begun[1] == second.best else begun[0])
    assert without_times(begun + run(second)) == without_times(expected)
    if given["lr"] == STANDSTILL:
        assert expected[-1].lr < STANDSTILL, "there was no plateau to restore"
    assert second.finished
    for key, value in uninterrupted.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_a_training_depends_on_its_seed_alone(create):
    given = {"freeze_depth": 3, "dropout": 0.3, "augment": 0.7, "mixup": 0.2, "epochs": 2}
    state = torch.get_rng_state()
    runs = [without_times(run(create(**given, seed=seed))) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_accepts_every_seed_of_the_command_line(create):
    trainer = create(seed=(2**32 - 1) * 1_000_003 + 99)
    assert math.isfinite(trainer.run_epoch().train_loss)


# Batches


@pytest.mark.parametrize("augment", [0.0, 0.7])
def test_training_from_the_cache_is_as_good_as_from_images(create, augment):
    given = {"freeze_depth": 3, "lr": 3e-3, "augment": augment, "epochs": 6}
    from_cache, computed = (
        run(create(use_cache=use_cache, **given)) for use_cache in (True, False)
    )
    assert from_cache[-1].val_accuracy >= 0.9
    assert computed[-1].val_accuracy >= 0.9
    if augment == 0:
        assert from_cache[0].train_loss == pytest.approx(computed[0].train_loss, rel=0.05)


@pytest.mark.parametrize("augment", [0.0, 0.05, 1.0])
def test_only_trained_images_are_augmented(create, feature_cache, monkeypatch, augment):
    given: dict[str, list[bool]] = {"train": [], "clean": []}

    def record(kind: str) -> Callable[..., Tensor]:
        original = getattr(CachedBatches, kind)

        def recording(self: CachedBatches, rows: Tensor, *rest: Any) -> Tensor:
            inputs: Tensor = original(self, rows, *rest)
            is_clean = (inputs == clean[rows]).all(1)
            given[kind] += is_clean.tolist()
            return inputs

        return recording

    clean = torch.cat(feature_cache[5].views[0])
    for kind in given:
        monkeypatch.setattr(CachedBatches, kind, record(kind))
    trainer = create(freeze_depth=5, augment=augment)
    run(trainer)
    assert len(given["train"]) == 4 * N_TRAIN
    assert set(given["train"]) == {augment == 0}
    assert len(given["clean"]) >= 4 * (N_IMAGES - N_TRAIN)
    assert all(given["clean"])


@pytest.mark.parametrize("use_cache", [True, False])
def test_training_works_without_bfloat16(create, monkeypatch, use_cache):
    def full_precision(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, enabled=False)

    for module in (trainer, batches):
        monkeypatch.setattr(module, "mixed_precision", full_precision)
    created = create(freeze_depth=3, use_cache=use_cache)
    assert math.isfinite(created.run_epoch().val_loss)


def test_every_training_image_is_used_once_per_epoch_in_a_new_order(create, monkeypatch):
    trainer = create(lr=STANDSTILL, train_rows=torch.arange(0, N_IMAGES, 2), batch_size=10)
    visited: list[list[int]] = []
    train = CachedBatches.train

    def watched(batches: CachedBatches, rows: Tensor, generator: torch.Generator) -> Tensor:
        visited[-1].extend(rows.tolist())
        return train(batches, rows, generator)

    monkeypatch.setattr(CachedBatches, "train", watched)
    for _ in range(2):
        visited.append([])
        trainer.run_epoch()
    assert sorted(visited[0]) == sorted(visited[1]) == list(range(0, N_IMAGES, 2))
    assert visited[0] != visited[1] != sorted(visited[1])
    assert trainer.steps_per_epoch == 4


def test_the_seed_decides_the_order(create, monkeypatch):
    orders: list[list[int]] = []

    def watched(batches: CachedBatches, rows: Tensor, generator: torch.Generator) -> Tensor:
        orders.append(rows.tolist())
        return batches.clean(rows)

    monkeypatch.setattr(CachedBatches, "train", watched)
    for seed in (5, 5, 6):
        create(freeze_depth=3, lr=STANDSTILL, seed=seed).run_epoch()
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("n_images", "batch_size"), [(9, 8), (7, 2), (3, 2), (2, 2)])
def test_there_is_no_batch_of_one_image(create, n_images, batch_size):
    """BatchNorm cannot train on one value per channel, as of a small image in a deep network."""
    net = create_backbone("resnet18", seed=0).to(memory_format=torch.channels_last)
    trainer = create(
        backbone_net=net,
        backbone="resnet18",
        freeze_depth=0,
        train_rows=torch.arange(n_images),
        val_rows=torch.arange(60, 64),
        batch_size=batch_size,
        epochs=1,
    )
    assert math.isfinite(trainer.run_epoch().train_loss)


def limit_memory(trainer: Trainer, max_images: int) -> list[int]:
    """Limit the batch size that fits into memory; return the list of batch sizes that are tried."""
    forward, given = trainer.model.forward, []

    def limited(x: Tensor, start: int) -> Tensor:
        given.append(len(x))
        if len(x) > max_images and trainer.model.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(x, start)

    trainer.model.forward = limited  # type: ignore[method-assign]
    return given


@pytest.mark.parametrize("class_weights", [False, True])
def test_a_batch_that_does_not_fit_is_split_with_the_same_result(create, class_weights):
    given = {"lr": 1e-2, "class_weights": class_weights, "train_rows": torch.arange(45)}
    full, split = create(**given), create(**given)
    sizes = limit_memory(split, max_images=5)
    for one, other in zip(run(full), run(split), strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
    assert [size for size in sizes if size > 5 and size <= 16][:2] == [15, 7]
    assert sizes.count(15) == 1, "the smaller size must be kept"


def test_run_epoch_raises_if_a_single_image_does_not_fit(create):
    trainer = create()
    limit_memory(trainer, max_images=0)
    with pytest.raises(TrainingError) as caught:
        trainer.run_epoch()
    assert str(caught.value) == (
        "tinynet at depth 5 does not fit the GPU's memory with a single image"
    )


# Frozen stages and initial heads


@pytest.mark.parametrize("use_cache", [True, False])
def test_frozen_stages_do_not_change(create, use_cache):
    trainer = create(freeze_depth=3, use_cache=use_cache, lr=1e-2, augment=0.5)
    before = weights_of(trainer)
    trainer.run_epoch()
    trainer.predict_logits(torch.arange(3))
    for key, value in trainer.model.state_dict().items():
        stage = int(key.split(".")[2]) if key.startswith("backbone") else 5
        assert torch.equal(value, before[key]) == (stage < 3), key


def test_validation_changes_no_statistics(create):
    trainer = create(freeze_depth=0)
    before = weights_of(trainer)
    trainer.predict_logits(torch.arange(N_IMAGES))
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_initial_head_initialises_a_linear_head(create, feature_cache):
    generator = torch.Generator().manual_seed(0)
    head = {
        "weight": torch.randn(N_CLASSES, 128, generator=generator),
        "bias": torch.randn(N_CLASSES, generator=generator),
    }
    rows = torch.arange(10)
    expected = F.linear(feature_cache[5].clean(rows).float(), head["weight"], head["bias"])
    given = create(initial_head=head, dropout=0.5)
    torch.testing.assert_close(given.predict_logits(rows), expected)
    before = head["weight"].clone()
    given.run_epoch()
    assert torch.equal(head["weight"], before), "other trainings begin with the same tensors"
    dense = create(initial_head=head, hidden_units=8)
    assert [type(layer) for layer in dense.model.head] == [
        *(nn.Linear, nn.ReLU, nn.Dropout, nn.Linear)
    ]
