"""K-fold retraining: each fold is trained once, in as many tasks as there are slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from search.pipeline.retraining import kfold
from search.pipeline.retraining.kfold import Fold, FoldStore, RetrainConfig, retrain
from spaces.base import TrialConfig
from trainables.worker import TrainingContext

N_IMAGES, N_FOLDS = 30, 5
LABELS = np.arange(N_IMAGES) % 2
CONTEXT = TrainingContext(
    table=None,  # type: ignore[arg-type]
    image_size=32,
    flip=False,
    weights={},
    seed=0,
    labels=LABELS,
    n_classes=2,
    epochs=1,
    patience=None,
    heads={},
    feature_source=None,
)
RESOURCES = {"num_cpus": 1.0, "num_gpus": 0.0}


@ray.remote
def fake_fold(fold_rows: np.ndarray, index: int) -> Fold:
    n = len(fold_rows)
    logits = np.zeros((n, 2), np.float32)
    return Fold(fold_rows, logits, np.zeros(n), 1.0, {}, {}, 1.0, str(index))


class FakeTask:
    """Replaces the task, and counts how many of it are pending."""

    def __init__(self, ended: list[int]) -> None:
        self._ended, self._n_started = ended, 0
        self.n_pending: list[int] = []

    def options(self, **resources: Any) -> FakeTask:
        return self

    def remote(
        self,
        context: TrainingContext,
        retrain_config: RetrainConfig,
        rows: Any,
        fold_rows: Any,
        *rest: Any,
    ) -> Any:
        self._n_started += 1
        self.n_pending.append(self._n_started - len(self._ended))
        return fake_fold.remote(fold_rows, rest[-1])


@pytest.fixture
def ended() -> list[int]:
    """The folds that ended, in this order."""
    return []


@pytest.fixture
def task(ray_session: None, ended: list[int], monkeypatch: pytest.MonkeyPatch) -> FakeTask:
    task = FakeTask(ended)
    monkeypatch.setattr(kfold, "train_fold", task)
    return task


def run(ended: list[int], before: dict[int, Fold]) -> list[Fold]:
    retrain_config = RetrainConfig(TrialConfig("tinynet"), 1, None)

    def on_fold(index: int, fold: Fold) -> None:
        ended.append(index)

    rows = np.arange(N_IMAGES)
    return retrain(CONTEXT, retrain_config, rows, N_FOLDS, True, RESOURCES, on_fold, before)


def test_no_more_folds_run_in_parallel_than_there_are_cpus(
    task: FakeTask, ended: list[int]
) -> None:
    """Ray would start more: a task that waits for an object gives its CPU back."""
    folds = run(ended, {})
    assert sorted(ended) == list(range(N_FOLDS))
    assert [fold.node for fold in folds] == [str(index) for index in range(N_FOLDS)]
    assert max(task.n_pending) == 2


@pytest.mark.usefixtures("task")
def test_folds_of_an_earlier_session_are_reused_if_they_left_out_the_same_images(
    ended: list[int],
) -> None:
    before: Any = dict(enumerate(run(ended, {})))
    ended.clear()
    other = before[4]
    before[4] = Fold(other.rows[:-1], *list(vars(other).values())[1:])
    del before[1]
    folds = run(ended, before)
    assert sorted(ended) == [1, 4]
    assert folds[0] is before[0]
    assert len(folds[4].rows) == len(other.rows)


def test_saved_folds_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    retrain_config = RetrainConfig(TrialConfig("tinynet"), 1, None)
    store = FoldStore(tmp_path / "state", "trial 0", retrain_config)
    logits = np.eye(2, dtype=np.float32)
    weights, subspace = {"head": torch.ones(2)}, {"mean": torch.zeros(3)}
    fold = Fold(np.array([3, 1]), logits, np.array([0.1, 0.2]), 0.5, weights, subspace, 1.5, "here")
    store.save(1, fold)
    loaded = store.load(3)
    assert list(loaded) == [1]
    np.testing.assert_array_equal(loaded[1].rows, fold.rows)
    np.testing.assert_array_equal(loaded[1].logits, logits)
    assert torch.equal(loaded[1].weights["head"], weights["head"])
    assert (loaded[1].accuracy, loaded[1].seconds, loaded[1].node) == (0.5, 1.5, "here")
    longer = RetrainConfig(TrialConfig("tinynet"), 2, None)
    assert FoldStore(tmp_path / "state", "trial 0", longer).load(3) == {}
    (file,) = (tmp_path / "state").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert store.load(3) == {}
    assert "is damaged, and its fold is trained again" in caplog.text
