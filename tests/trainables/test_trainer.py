import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from spaces.base import TrialConfig
from trainables import batches, trainer
from trainables.batches import ImageSet
from trainables.feature_cache import FeatureCache, as_features, build_view
from trainables.models.backbones import Backbone, create_backbone
from trainables.models.weights import PACKAGED, load_weights
from trainables.trainer import Trainer, TrainingError
from trainables.trial_result import EpochResult
from trainables.worker import resolve_config

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
    """Four views of all images at two boundaries."""
    backbone = new_backbone()
    backbone.freeze(5)
    built = [
        build_view(backbone.eval(), images.table, 32, view / 3, True, (3, 5), view, CPU)
        for view in range(4)
    ]
    return {
        stage_output: FeatureCache(
            tuple(as_features(bits[stage_output]).split(50) for bits in built),
            4,
            torch.arange(N_IMAGES),
            block_size=50,
        )
        for stage_output in (3, 5)
    }


@pytest.fixture
def create(
    images: ImageSet,
    new_backbone: Callable[[], Backbone],
    feature_cache: dict[int, FeatureCache],
) -> Callable[..., Trainer]:
    """Set a training up; keywords that `TrialConfig` knows go into the config."""

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


def test_a_network_learns_from_scratch(create):
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
def test_every_optimizer_learns_under_every_schedule(create, optimizer, scheduler):
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


def test_a_dense_head_learns_with_everything_on(create):
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


def test_validation_figures_are_those_of_its_predictions(create, images):
    trainer = create(lr=1e-3)
    result = trainer.run_epoch()
    rows = torch.arange(N_TRAIN, N_IMAGES)
    logits, labels = trainer.predict_logits(rows), images.labels[rows]
    assert logits.shape == (N_IMAGES - N_TRAIN, N_CLASSES)
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    predicted = logits.argmax(1)
    assert 0 < result.val_accuracy < 1, "figures that all are 1 would hide mistakes"
    assert result.val_accuracy == pytest.approx(float((predicted == labels).float().mean()))
    assert result.val_loss == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert result.val_macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_macro_f1_is_over_the_classes_that_occur():
    labels, predicted = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 2, 1, 1])
    expected = f1_score(labels, predicted, average="macro", zero_division=0.0)
    assert trainer._macro_f1(labels, predicted, 6) == pytest.approx(expected)


def test_the_best_epoch_has_the_lower_loss_among_equals():
    low = EpochResult(1, 0, 0, 0, 0.5, 0.8, 0.8, 0.1, 1, 1, 0)
    assert trainer._better(replace(low, val_loss=0.4), low)
    assert not trainer._better(replace(low, val_loss=0.6), low)
    assert not trainer._better(low, low)
    assert trainer._better(replace(low, val_accuracy=0.9, val_loss=0.9), low)


# Loss


def first_loss(trainer: Trainer) -> float:
    """Return the loss of a training that stands still, in one batch."""
    return trainer.run_epoch().train_loss


def test_label_smoothing_is_in_the_loss(create, images):
    still = {"lr": STANDSTILL, "batch_size": N_TRAIN, "hidden_units": 16}
    rows = torch.arange(N_TRAIN)
    logits = create(**still).predict_logits(rows)
    plain, smooth = (
        float(F.cross_entropy(logits, images.labels[rows], label_smoothing=share))
        for share in (0.0, 0.3)
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
    # Beta(1e-4, 1e-4) is 0 or 1: partners change places, and nothing else happens.
    assert almost_none == pytest.approx([plain] * 3, rel=1e-4)


def test_class_weights_are_scikit_learns_balanced_ones(create, images):
    rows = torch.cat([torch.arange(0, 30, 3), torch.arange(1, 10, 3), torch.tensor([2])])
    trainer = create(class_weights=True, train_rows=rows, lr=STANDSTILL, batch_size=64)
    labels = images.labels[rows]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert trainer._class_weights.tolist() == pytest.approx(expected.tolist())
    loss = F.cross_entropy(trainer.predict_logits(rows), labels, torch.from_numpy(expected).float())
    assert first_loss(trainer) == pytest.approx(float(loss), rel=1e-4)


def test_a_class_without_images_breaks_no_weights(create):
    trainer = create(class_weights=True, train_rows=torch.tensor([0, 1, 3, 4]))
    assert math.isfinite(trainer.run_epoch().train_loss)


@pytest.mark.parametrize("depth", [0, 5])
def test_a_training_that_explodes_says_why(create, depth):
    trainer = create(freeze_depth=depth, lr=1e38, optimizer="sgd")
    reason = r"^the training loss is (nan|inf) in epoch \d \(lr 1e\+38, sgd\)$"
    with pytest.raises(TrainingError, match=reason):
        run(trainer)


def test_a_training_that_explodes_in_its_last_step_is_no_result(create):
    trainer = create(freeze_depth=0, lr=1e38, optimizer="sgd", batch_size=64, epochs=1)
    with pytest.raises(TrainingError, match=r"^the validation loss is nan in epoch 1 \(lr 1e\+38"):
        run(trainer)
    assert trainer.best is None


# Learning rates


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.25),
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),
        (22, 0.5),
        (31, 0.5 * (1 + math.cos(math.pi * 27 / 36))),
        (39, 0.5 * (1 + math.cos(math.pi * 35 / 36))),
    ],
)
def test_cosine_warms_up_over_a_tenth_and_falls_to_nothing(step, factor):
    assert trainer._cosine_with_warmup(step, 40) == pytest.approx(factor)


def test_cosine_of_a_single_step_trains():
    assert trainer._cosine_with_warmup(0, 1) == 1.0


def test_the_last_rate_of_each_epoch_follows_the_cosine(create):
    results = run(create(scheduler="cosine", lr=0.01))
    assert [r.lr for r in results] == pytest.approx(
        [0.01 * trainer._cosine_with_warmup(step, 12) for step in (2, 5, 8, 11)]
    )


def test_without_a_schedule_the_rate_stays(create):
    assert [r.lr for r in run(create(lr=0.02))] == [0.02] * 4


def test_a_plateau_lowers_the_rate_after_its_patience(create):
    results = run(create(scheduler="plateau", lr=STANDSTILL, optimizer="sgd", epochs=9))
    steps = [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert [r.lr for r in results] == pytest.approx(
        [STANDSTILL * s for s in steps], rel=1e-6, abs=0
    )


def test_a_falling_loss_is_no_plateau(create):
    results = run(create(scheduler="plateau", lr=1e-4, epochs=6))
    losses = [result.val_loss for result in results]
    assert losses == sorted(losses, reverse=True)
    assert {result.lr for result in results} == {1e-4}


@pytest.mark.parametrize("scheduler", ["plateau", "none"])
def test_given_rates_are_followed_epoch_by_epoch(create, scheduler):
    lrs = [0.1, 0.01, 0.05, 0.002]
    results = run(create(scheduler=scheduler, lr=3.0, epoch_lrs=lrs))
    assert [result.lr for result in results] == lrs


# Ending


def test_patience_ends_a_training_that_stands_still(create):
    trainer = create(lr=STANDSTILL, optimizer="sgd", epochs=9, patience=2)
    assert len(run(trainer)) == 3
    assert trainer.best is not None
    assert trainer.best.epoch == 1


def test_without_patience_a_training_has_its_full_length(create):
    assert len(run(create(lr=STANDSTILL, optimizer="sgd", epochs=6))) == 6


def test_without_validation_images_the_figures_are_nan(create):
    trainer = create(val_rows=torch.empty(0, dtype=torch.long), epochs=2)
    for result in run(trainer):
        assert math.isnan(result.val_loss)
        assert math.isnan(result.val_accuracy)
        assert math.isnan(result.val_macro_f1)
        assert math.isfinite(result.train_loss)


# Going on

RESUMED = {
    "all of it, from images": {
        "freeze_depth": 1,
        "dropout": 0.3,
        "augment": 0.5,
        "mixup": 0.2,
        "scheduler": "cosine",
        "lr": 3e-3,
        "class_weights": True,
    },
    "a head, from the bank": {
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
def test_a_training_goes_on_as_if_nothing_had_happened(create, given):
    whole = create(**given, epochs=6, patience=5)
    first = create(**given, epochs=6, patience=5)
    expected = run(whole)
    begun = [first.run_epoch() for _ in range(2)]
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    run(first)  # what was saved must not follow the training that goes on
    second = create(**given, epochs=6, patience=5)
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert (second.epoch, second.best) == (2, begun[-1] if begun[1] == second.best else begun[0])
    assert without_times(begun + run(second)) == without_times(expected)
    if given["lr"] == STANDSTILL:
        assert expected[-1].lr < STANDSTILL, "there was no plateau to be remembered"
    assert second.finished
    for key, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_the_seed_decides_and_the_global_state_stays(create):
    given = {"freeze_depth": 3, "dropout": 0.3, "augment": 0.7, "mixup": 0.2, "epochs": 2}
    state = torch.get_rng_state()
    runs = [without_times(run(create(**given, seed=seed))) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_any_seed_of_the_command_line_trains(create):
    trainer = create(seed=(2**32 - 1) * 1_000_003 + 99)
    assert math.isfinite(trainer.run_epoch().train_loss)


# Where batches come from


def test_the_bank_and_the_images_give_the_same_features(create):
    rows = torch.arange(N_IMAGES)
    generator = torch.Generator().manual_seed(0)
    from_cache, computed = (create(use_cache=use_cache) for use_cache in (True, False))
    clean = from_cache._batches.clean(rows).float()
    assert clean.std() > 0.1, "the tolerance would hide a mistake"
    torch.testing.assert_close(computed._batches.clean(rows).float(), clean, atol=1e-2, rtol=2e-2)
    torch.testing.assert_close(
        computed._batches.train(rows, generator).float(), clean, atol=1e-2, rtol=2e-2
    )
    torch.testing.assert_close(from_cache._batches.train(rows, generator).float(), clean)


@pytest.mark.parametrize("augment", [0.0, 0.7])
def test_a_training_from_the_bank_is_as_good_as_one_from_the_images(create, augment):
    given = {"freeze_depth": 3, "lr": 3e-3, "augment": augment, "epochs": 6}
    from_cache, computed = (
        run(create(use_cache=use_cache, **given)) for use_cache in (True, False)
    )
    assert from_cache[-1].val_accuracy >= 0.9
    assert computed[-1].val_accuracy >= 0.9
    if augment == 0:
        assert from_cache[0].train_loss == pytest.approx(computed[0].train_loss, rel=0.05)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_processor_without_bfloat16_trains_too(create, monkeypatch, use_cache):
    def full_precision(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, enabled=False)

    for module in (trainer, batches):
        monkeypatch.setattr(module, "mixed_precision", full_precision)
    created = create(freeze_depth=3, use_cache=use_cache)
    assert math.isfinite(created.run_epoch().val_loss)


def test_every_training_image_is_visited_once_an_epoch_in_a_new_order(create):
    trainer = create(lr=STANDSTILL, train_rows=torch.arange(0, N_IMAGES, 2), batch_size=10)
    visited: list[list[int]] = []
    give = trainer._batches.train

    def watched(rows: Tensor, generator: torch.Generator) -> Tensor:
        visited[-1].extend(rows.tolist())
        return give(rows, generator)

    trainer._batches.train = watched  # type: ignore[method-assign]
    for _ in range(2):
        visited.append([])
        trainer.run_epoch()
    assert sorted(visited[0]) == sorted(visited[1]) == list(range(0, N_IMAGES, 2))
    assert visited[0] != visited[1] != sorted(visited[1])
    assert trainer.steps_per_epoch == 4


def test_a_last_batch_of_one_image_trains(create):
    """Batch normalisation cannot train on one value a channel: tiny images in a deep net."""
    net = create_backbone("resnet18", seed=0).to(memory_format=torch.channels_last)
    trainer = create(
        backbone_net=net,
        backbone="resnet18",
        freeze_depth=0,
        train_rows=torch.arange(9),
        val_rows=torch.arange(60, 64),
        batch_size=8,
        epochs=1,
    )
    assert math.isfinite(trainer.run_epoch().train_loss)


def short_of_memory(trainer: Trainer, most: int) -> list[int]:
    """Let the model take at most so many images at a time; return the sizes it was given."""
    forward, given = trainer.model.forward, []

    def limited(x: Tensor, stage_output: int) -> Tensor:
        given.append(len(x))
        if len(x) > most and trainer.model.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(x, stage_output)

    trainer.model.forward = limited  # type: ignore[method-assign]
    return given


@pytest.mark.parametrize("class_weights", [False, True])
def test_a_batch_that_does_not_fit_is_halved_and_learns_the_same(create, class_weights):
    given = {"lr": 1e-2, "class_weights": class_weights, "train_rows": torch.arange(45)}
    whole, halved = create(**given), create(**given)
    sizes = short_of_memory(halved, most=5)
    for one, other in zip(run(whole), run(halved), strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
    assert [size for size in sizes if size > 5 and size <= 16][:2] == [15, 7]
    assert sizes.count(15) == 1, "the halving is forgotten"


def test_a_image_that_does_not_fit_ends_the_training(create):
    trainer = create()
    short_of_memory(trainer, most=0)
    with pytest.raises(TrainingError) as caught:
        trainer.run_epoch()
    assert str(caught.value) == (
        "tinynet at depth 5 does not fit the GPU's memory with a single image"
    )


# What is frozen, and what is not


@pytest.mark.parametrize("use_cache", [True, False])
def test_frozen_stages_stay_as_they_are(create, use_cache):
    trainer = create(freeze_depth=3, use_cache=use_cache, lr=1e-2, augment=0.5)
    before = weights_of(trainer)
    trainer.run_epoch()
    trainer.predict_logits(torch.arange(3))
    for key, value in trainer.model.state_dict().items():
        stage = int(key.split(".")[2]) if key.startswith("backbone") else 5
        assert torch.equal(value, before[key]) == (stage < 3), key


def test_validation_moves_no_statistics(create):
    trainer = create(freeze_depth=0)
    before = weights_of(trainer)
    trainer.predict_logits(torch.arange(N_IMAGES))
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_biases_and_normalisation_are_not_decayed(create):
    trainer = create(freeze_depth=3, weight_decay=0.3)
    decayed, plain = trainer._optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in plain["params"]} == {1}
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(plain["params"]) == len(trained)


def test_a_head_start_is_what_a_linear_head_begins_with(create, feature_cache):
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
    assert torch.equal(head["weight"], before), "other trainings begin with the same head"
    dense = create(initial_head=head, hidden_units=8)
    assert [type(layer) for layer in dense.model.head] == [
        *(nn.Linear, nn.ReLU, nn.Dropout, nn.Linear)
    ]


def test_a_network_that_nobody_has_pretrained_is_never_frozen():
    assert resolve_config({"backbone": "cnn", "freeze_depth": 4, "lr": 0.1}) == TrialConfig(
        "cnn", lr=0.1, freeze_depth=0
    )
    assert resolve_config({"backbone": "cnn"}).freeze_depth == 0
    assert resolve_config({"backbone": "tinynet", "freeze_depth": 4}).freeze_depth == 4
