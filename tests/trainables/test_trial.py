"""Trials as Ray Tune runs them, step by step in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ObjectLostError

from tests.fixtures.prepared_data import InMemory
from trainables import trial
from trainables.models.classifier import Weights
from trainables.trainer import Trainer
from trainables.trial import ImageTrial, NodeDrainedError
from trainables.trial_files import TrialIdentity, pack, unpack
from trainables.worker import TrainingContext

N_IMAGES, N_EPOCHS = 24, 4
BEST = 2
SCORES = {1: 0.5, BEST: 0.9, 3: 0.9, 4: 0.6}
LOSSES = {1: 0.8, BEST: 0.3, 3: 0.4, 4: 0.2}


@dataclass
class Checkpoints:
    """Keeps what a trial submits in this process's memory.

    Attributes:
        keeps: Whether a trial's weights would be kept.
        error: Raised where a checkpoint is saved.
    """

    last: dict[int, bytes] = field(default_factory=dict)
    submitted: list[tuple[int, tuple[float, float], bytes]] = field(default_factory=list)
    keeps: bool = True
    error: Exception | None = None

    def would_keep(self, number: int, score: tuple[float, float]) -> bool:
        return self.keeps

    def submit(self, number: int, score: tuple[float, float], content: bytes) -> None:
        self.submitted.append((number, score, content))

    def save(self, number: int, content: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.last[number] = content

    def load_last(self, number: int) -> bytes | None:
        return self.last.get(number)


@dataclass(frozen=True, eq=False)
class Unreadable:
    """Stands in for images that cannot be opened."""

    error: Exception

    def open(self) -> np.ndarray:
        raise self.error


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the threads of this process as they are."""
    monkeypatch.setattr(trial, "configure_cpu", lambda n_threads: None)


@pytest.fixture
def after_epochs(monkeypatch: pytest.MonkeyPatch) -> dict[int, Weights]:
    """Validate with the known scores; return the weights after each epoch."""
    weights: dict[int, Weights] = {}

    def validate(trainer: Trainer) -> tuple[float, float, float, float]:
        weights[trainer.epoch] = trainer.model.member_weights()
        return LOSSES[trainer.epoch], 0.5, 0.5, SCORES[trainer.epoch]

    monkeypatch.setattr(Trainer, "_validate", validate)
    return weights


CONTEXT = TrainingContext(
    table=InMemory(np.random.default_rng(0).integers(0, 256, (N_IMAGES, 32, 32, 3), np.uint8)),
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
PARAMS = {"backbone": "tinynet", "freeze_depth": 4, "lr": 0.01}


def begin(
    checkpoints: Checkpoints,
    number: int = 7,
    context: TrainingContext = CONTEXT,
    epochs: int = N_EPOCHS,
    is_draining: Callable[[], bool] = lambda: False,
    **params: Any,
) -> ImageTrial:
    made = ImageTrial.__new__(ImageTrial)  # as an actor, without Tune's folders
    config = {"number": number, "params": {**PARAMS, **params}, "epochs": epochs}
    rows = np.arange(N_IMAGES)
    made.setup(config, context, rows[:18], rows[18:], checkpoints, is_draining=is_draining)
    return made


def check_best(checkpoints: Checkpoints, best: Weights) -> None:
    """Check that the weights of the best epoch were submitted, and they alone."""
    ((number, score, content),) = checkpoints.submitted
    assert (number, score) == (7, (SCORES[BEST], -LOSSES[BEST]))
    submitted = unpack(TrialIdentity("", 7, PARAMS), content)
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


def metrics(result: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the clock."""
    timed = ("seconds", "trained_seconds", "images_per_second")
    return {key: value for key, value in result.items() if key not in timed}


def test_weights_that_would_not_be_kept_are_not_sent() -> None:
    checkpoints = Checkpoints(keeps=False)
    trial = begin(checkpoints, epochs=1)
    assert trial.step()["done"]
    assert checkpoints.submitted == []


def test_a_trial_continues_from_its_checkpoint_with_the_epoch_it_reported() -> None:
    whole = begin(Checkpoints())
    expected = [whole.step() for _ in range(N_EPOCHS)]
    checkpoints = Checkpoints()
    lost = begin(checkpoints)
    reported = [lost.step() for _ in range(2)]
    continued = begin(checkpoints)  # in another worker
    assert continued.step() == reported[1], "since nobody knows whether it arrived"
    last = continued.step()
    assert metrics(last) == metrics(expected[2])
    assert last["trained_seconds"] == pytest.approx(
        reported[1]["trained_seconds"] + last["seconds"]
    )


def test_a_trial_leaves_a_node_that_is_drained_without_losing_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "_DRAIN_CHECK_SECONDS", 0.0)
    checkpoints = Checkpoints()
    is_drained = False
    first = begin(checkpoints, is_draining=lambda: is_drained)
    reported = [first.step() for _ in range(2)]
    is_drained = True
    with pytest.raises(NodeDrainedError, match="drained"):
        first.step()
    # Nor does the worker begin another trial there.
    first.reset_config({"number": 8, "params": PARAMS, "epochs": N_EPOCHS})
    with pytest.raises(NodeDrainedError):
        first.step()
    elsewhere = begin(checkpoints)
    assert elsewhere.step() == reported[1]
    assert elsewhere.step()["epoch"] == 3


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no checkpoint", b"PK\x03\x04 cut off"),
        *(
            pack(TrialIdentity("", 7, PARAMS), content)
            for content in ([1], {"trainer": {}}, {"trainer": 1, "best_weights": 2, "result": 3})
        ),
    ],
)
def test_a_damaged_checkpoint_starts_the_trial_again(content: bytes) -> None:
    trial = begin(Checkpoints(last={7: content}))
    assert metrics(trial.step()) == metrics(begin(Checkpoints()).step())


@pytest.mark.parametrize(
    ("number", "run_id", "params"),
    [(7, "another", {}), (8, "", {}), (7, "", {"lr": 0.02}), (7, "", {"dropout": 0.5})],
    ids=["of another run", "of another number", "of other parameters", "of one more parameter"],
)
def test_a_checkpoint_of_another_trial_is_not_taken(
    number: int, run_id: str, params: dict[str, Any]
) -> None:
    left = Checkpoints()
    other = begin(left, number, replace(CONTEXT, run_id=run_id), **params)
    other.step()
    other.step()
    trial = begin(Checkpoints(last={7: left.last[number]}))
    first = trial.step()
    assert first["epoch"] == 1
    assert metrics(first) == metrics(begin(Checkpoints()).step())


def test_a_worker_that_is_reused_trains_as_a_new_one() -> None:
    reused = begin(Checkpoints(), number=1, lr=0.1)
    reused.step()
    assert reused.reset_config({"number": 7, "params": PARAMS, "epochs": N_EPOCHS})
    assert metrics(reused.step()) == metrics(begin(Checkpoints()).step())


def test_the_number_of_a_trial_seeds_it() -> None:
    losses = {begin(Checkpoints(), number).step()["train_loss"] for number in (4, 4, 5)}
    assert len(losses) == 2


def test_a_training_that_diverges_fails_with_its_reason() -> None:
    trial = begin(Checkpoints(), lr=1e30, optimizer="sgd")
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    failed = results[-1]
    assert "loss is" in failed["failure"]
    assert "Traceback" in failed["traceback"]
    assert not failed["finished"]
    assert trial.step() == failed, "it does not train on"


def test_a_mistake_fails_with_its_type_and_not_at_length() -> None:
    table = Unreadable(RuntimeError("x" * 10_000))
    failed = begin(Checkpoints(), context=replace(CONTEXT, table=table)).step()
    assert failed["failure"].startswith("RuntimeError: xxx")
    assert len(failed["failure"]) == 500


def test_what_the_cluster_lost_is_no_failure_of_the_trial() -> None:
    """Ray ends the worker, and the trial is continued in another."""
    table = Unreadable(ObjectLostError("0" * 56, None, ""))
    with pytest.raises(ObjectLostError):
        begin(Checkpoints(), context=replace(CONTEXT, table=table))


def test_a_full_disk_is_no_failure_of_the_trial() -> None:
    checkpoints = Checkpoints(error=OSError(28, "No space left on device"))
    result = begin(checkpoints).step()
    assert result["disk_full"] == "no space left for checkpoints"
    assert (result["failure"], result["epoch"], result["done"]) == (None, 0, False)


def test_a_trial_without_its_arguments_is_an_error() -> None:
    trial = ImageTrial.__new__(ImageTrial)
    with pytest.raises(ValueError, match=r"by `tune\.with_parameters`"):
        trial.setup({"number": 0, "params": PARAMS, "epochs": 1}, context=CONTEXT)
