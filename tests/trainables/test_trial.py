"""A trial in this process, with validation scores that are known beforehand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.fixtures.prepared_data import InMemory
from trainables import trial
from trainables.models.classifier import Weights
from trainables.trainer import Trainer
from trainables.trial import ImageTrial
from trainables.worker import TrainingContext

N_IMAGES, N_EPOCHS = 24, 4
BEST = 2
ACCURACIES = {1: 0.5, BEST: 0.9, 3: 0.9, 4: 0.6}
LOSSES = {1: 0.8, BEST: 0.3, 3: 0.4, 4: 0.2}


@dataclass
class Checkpoints:
    """Keeps what a trial submits in this process's memory."""

    last: dict[int, bytes] = field(default_factory=dict)
    submitted: list[tuple[int, tuple[float, float], bytes]] = field(default_factory=list)

    def would_keep(self, number: int, score: tuple[float, float]) -> bool:
        return True

    def submit(self, number: int, score: tuple[float, float], content: bytes) -> None:
        self.submitted.append((number, score, content))

    def save(self, number: int, content: bytes) -> None:
        self.last[number] = content

    def load_last(self, number: int) -> bytes | None:
        return self.last.get(number)


@pytest.fixture(autouse=True)
def after_epochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Weights]]:
    """Validate with the known scores; return the weights after each epoch."""
    weights: dict[int, Weights] = {}

    def validate(trainer: Trainer) -> tuple[float, float, float]:
        weights[trainer.epoch] = trainer.model.member_weights()
        return LOSSES[trainer.epoch], ACCURACIES[trainer.epoch], 0.5

    monkeypatch.setattr(Trainer, "_validate", validate)
    monkeypatch.setattr(trial, "configure_cpu", lambda n_threads: None)
    return weights


def begin(checkpoints: Checkpoints) -> ImageTrial:
    table = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 32, 32, 3), np.uint8)
    context = TrainingContext(
        table=InMemory(table),
        image_size=32,
        flip=False,
        weights={},
        seed=0,
        labels=np.arange(N_IMAGES) % 2,
        n_classes=2,
        epochs=N_EPOCHS,
        patience=None,
        heads={},
        feature_source=None,
    )
    made = ImageTrial.__new__(ImageTrial)  # as an actor, without Tune's folders
    config = {"number": 7, "params": {"backbone": "tinynet", "freeze_depth": 4, "lr": 0.01}}
    rows = np.arange(N_IMAGES)
    made.setup(config, context, rows[:18], rows[18:], checkpoints)
    return made


def check_best(checkpoints: Checkpoints, best: Weights) -> None:
    """Check that the weights of the best epoch were submitted, and they alone."""
    ((number, score, content),) = checkpoints.submitted
    assert (number, score) == (7, (ACCURACIES[BEST], -LOSSES[BEST]))
    submitted = torch.load(io.BytesIO(content), weights_only=True)
    torch.testing.assert_close(submitted, best, rtol=0, atol=0)


def test_the_best_epochs_weights_are_kept(after_epochs: dict[int, Weights]) -> None:
    checkpoints = Checkpoints()
    begun = begin(checkpoints)
    results = [begun.step() for _ in range(N_EPOCHS)]
    assert [result["best_epoch"] for result in results] == [1, BEST, BEST, BEST]
    assert not torch.equal(after_epochs[BEST]["head.1.weight"], after_epochs[4]["head.1.weight"])
    check_best(checkpoints, after_epochs[BEST])


@pytest.mark.parametrize("n_before", [BEST, 3])
def test_a_resumed_trial_keeps_the_best_epochs_weights(
    after_epochs: dict[int, Weights], n_before: int
) -> None:
    checkpoints = Checkpoints()
    first = begin(checkpoints)
    for _ in range(n_before):
        first.step()
    best = after_epochs[BEST]
    resumed = begin(checkpoints)
    results = [resumed.step() for _ in range(N_EPOCHS - n_before + 1)]
    assert [result["epoch"] for result in results] == list(range(n_before, N_EPOCHS + 1))
    check_best(checkpoints, best)
