"""The folds as tasks: each once, no more at a time than there is room for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

from search.pipeline.retraining import kfold
from search.pipeline.retraining.kfold import Fold, RetrainConfig, retrain
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
def _stand_in(part: np.ndarray, index: int) -> Fold:
    nothing = np.zeros((len(part), 2), np.float32)
    return Fold(part, nothing, np.zeros(len(part)), 1.0, {}, {}, 1.0, str(index))


class Watched:
    """Stands in for the task, and notes how many of it there are at a time."""

    def __init__(self, told: list[int]) -> None:
        self._told, self._submitted = told, 0
        self.at_a_time: list[int] = []

    def options(self, **resources: Any) -> Watched:
        return self

    def remote(
        self,
        context: TrainingContext,
        retrain_config: RetrainConfig,
        rows: Any,
        part: Any,
        *rest: Any,
    ) -> Any:
        self._submitted += 1
        self.at_a_time.append(self._submitted - len(self._told))
        return _stand_in.remote(part, rest[-1])


@pytest.fixture
def told() -> list[int]:
    """The folds that ended, in this order."""
    return []


@pytest.fixture
def watched(ray_session: None, told: list[int], monkeypatch: pytest.MonkeyPatch) -> Watched:
    task = Watched(told)
    monkeypatch.setattr(kfold, "_train_fold", task)
    return task


def run(told: list[int], before: dict[int, Fold]) -> list[Fold]:
    retrain_config = RetrainConfig(TrialConfig("tinynet"), 1, None)

    def on_fold(index: int, fold: Fold) -> None:
        told.append(index)

    rows = np.arange(N_IMAGES)
    return retrain(CONTEXT, retrain_config, rows, N_FOLDS, True, RESOURCES, on_fold, before)


def test_no_more_folds_run_at_a_time_than_there_are_cpus(watched: Watched, told: list[int]) -> None:
    """Ray would begin more: a task that waits for an object gives its CPU back."""
    made = run(told, {})
    assert sorted(told) == list(range(N_FOLDS))
    assert [fold.node for fold in made] == [str(index) for index in range(N_FOLDS)]
    assert max(watched.at_a_time) == 2


@pytest.mark.usefixtures("watched")
def test_folds_of_an_earlier_session_stand_where_they_held_out_the_same(told: list[int]) -> None:
    before: Any = dict(enumerate(run(told, {})))
    told.clear()
    other = before[4]
    before[4] = Fold(other.held_out[:-1], *list(vars(other).values())[1:])
    del before[1]
    made = run(told, before)
    assert sorted(told) == [1, 4]
    assert made[0] is before[0]
    assert len(made[4].held_out) == len(other.held_out)
