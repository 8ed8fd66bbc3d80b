"""K-fold retraining: each fold is trained once, on the others alone, in as many tasks as fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.cluster.shared_file import StoredObject
from search.pipeline.backbones.feature_cache import plan_feature_cache
from search.pipeline.prepare import PreparedData
from search.pipeline.retraining import kfold
from search.pipeline.retraining.kfold import Fold, FoldError, FoldStore, RetrainConfig, retrain
from spaces.base import Space, TrialConfig
from spaces.sources import folder
from tests.fixtures.channel_noise import candidate
from tests.fixtures.prepared_data import prepared_data, started_cache
from trainables.pretrained.weights import PACKAGED, load_weights
from trainables.worker import TrainingContext

N_IMAGES, N_FOLDS, SIDE = 30, 5, 32
ROWS = np.arange(N_IMAGES)
LABELS = np.arange(N_IMAGES) % 2
RESOURCES = {"num_cpus": 1.0, "num_gpus": 0.0}
SPACE = Space(
    source=folder(),
    params={"backbone": "tinynet", "freeze_depth": 5},
    image_size=SIDE,
    resize_size=SIDE,
    epochs=2,
    views=1,
)
FROZEN = RetrainConfig(TrialConfig("tinynet", freeze_depth=5, lr=0.01), 1, 1)


def noise() -> np.ndarray:
    size = (N_IMAGES, SIDE, SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def prepare(pixels: np.ndarray) -> PreparedData:
    return prepared_data(
        SPACE,
        pixels,
        LABELS.tolist(),
        ("even", "odd"),
        ["train"] * N_IMAGES,
        table=StoredObject.put(pixels),
        weights={"tinynet": StoredObject.put(load_weights(PACKAGED["tinynet"]))},
    )


def context_of(prepared: PreparedData) -> TrainingContext:
    """Return the context of trainings that read the cache, and begin with a probe's head."""
    cache = started_cache(plan_feature_cache(prepared, {"tinynet": candidate(1.0, 512)}))
    return prepared.training_context({"tinynet": {}}, cache)


@pytest.fixture(scope="module")
def context(ray_session: None) -> TrainingContext:
    return context_of(prepare(noise()))


def run(
    context: TrainingContext,
    retrain_config: RetrainConfig = FROZEN,
    before: dict[int, Fold] | None = None,
    ended: list[int] | None = None,
    n_folds: int = N_FOLDS,
    has_time: Callable[[float, int], bool] = lambda seconds, n_folds: True,
) -> list[Fold]:
    """Retrain; the indices of the folds that end are appended to `ended`."""

    def on_fold(index: int, fold: Fold) -> None:
        if ended is not None:
            ended.append(index)

    given = before or {}
    return retrain(
        context, retrain_config, ROWS, n_folds, True, RESOURCES, on_fold, given, has_time
    )


class CountedTask:
    """The task, which counts how many of it are pending."""

    def __init__(self, task: Any, ended: list[int]) -> None:
        self._task, self._ended = task, ended
        self.n_pending: list[int] = []

    def options(self, **options: Any) -> CountedTask:
        self._task = self._task.options(**options)
        return self

    def remote(self, *arguments: Any) -> Any:
        self.n_pending.append(len(self.n_pending) + 1 - len(self._ended))
        return self._task.remote(*arguments)


def test_no_more_folds_run_in_parallel_than_there_are_cpus(
    context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would start more: a task that waits for an object gives its CPU back."""
    ended: list[int] = []
    task = CountedTask(kfold.train_fold, ended)
    monkeypatch.setattr(kfold, "train_fold", task)
    folds = run(context, ended=ended)
    assert sorted(ended) == list(range(N_FOLDS))
    assert max(task.n_pending) == 2
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.rows for fold in folds])), ROWS)


@pytest.mark.parametrize(("depth", "epochs"), [(5, 0), (5, 2), (0, 1)])
def test_a_fold_depends_on_no_image_that_it_leaves_out(
    context: TrainingContext, depth: int, epochs: int
) -> None:
    """Neither its weights do, nor its initial head, nor the subspace of its OOD scores."""
    config = TrialConfig("tinynet", freeze_depth=depth, lr=0.01, batch_size=8)
    to_train = RetrainConfig(config, epochs, epochs)
    folds = run(context, to_train, n_folds=2)
    pixels = noise()
    pixels[folds[0].rows] = 255 - pixels[folds[0].rows]
    others = run(context_of(prepare(pixels)), to_train, n_folds=2)
    np.testing.assert_array_equal(folds[0].rows, others[0].rows)
    for name in ("weights", "subspace"):
        one, other = getattr(folds[0], name), getattr(others[0], name)
        torch.testing.assert_close(
            other, one, rtol=0, atol=0, msg=f"{name} know what they must not"
        )
        trained_on, other = getattr(folds[1], name), getattr(others[1], name)
        assert any(not torch.equal(trained_on[key], other[key]) for key in other)
    assert not np.allclose(folds[0].logits, others[0].logits, atol=0.1), "the images are others"
    assert folds[0].accuracy == np.mean(folds[0].logits.argmax(1) == LABELS[folds[0].rows])
    assert folds[0].residuals.shape == (len(folds[0].rows),)


def test_near_duplicates_stay_in_one_fold(context: TrainingContext) -> None:
    groups = np.random.default_rng(1).permutation(N_IMAGES) // 3
    for fold in run(replace(context, groups=groups)):
        assert not set(groups[fold.rows]) & set(groups[np.setdiff1d(ROWS, fold.rows)])


def test_folds_of_an_earlier_session_are_reused_if_they_left_out_the_same_images(
    context: TrainingContext,
) -> None:
    before, ended = dict(enumerate(run(context))), list[int]()
    before[4] = replace(before[4], rows=before[4].rows[:-1])
    del before[1]
    folds = run(context, before=before, ended=ended)
    assert sorted(ended) == [1, 4]
    assert folds[0] is before[0]
    assert len(folds[4].rows) == N_IMAGES // N_FOLDS


@pytest.mark.parametrize(("n_in_time", "trained"), [(0, [0]), (3, [0, 1, 2]), (9, [0, 1, 2, 3, 4])])
def test_as_many_folds_are_trained_as_there_is_time_for(
    context: TrainingContext, n_in_time: int, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them, and one at least."""
    monkeypatch.setattr(kfold.TrialSlots, "__call__", lambda self: 1)
    ended: list[int] = []
    folds = run(context, ended=ended, has_time=lambda seconds, n_folds: n_folds <= n_in_time)
    assert ended == trained
    assert len(folds) == len(trained)


def test_folds_before_one_of_an_earlier_session_are_trained_without_time(
    context: TrainingContext,
) -> None:
    """Finalists are compared on the first folds, which all of them have."""
    before, ended = {2: run(context)[2]}, list[int]()
    seen: list[float] = []

    def has_time(seconds: float, n_folds: int) -> bool:
        seen.append(seconds)
        return False

    folds = run(context, before=before, ended=ended, has_time=has_time)
    assert sorted(ended) == [0, 1]
    assert folds[2] is before[2]
    assert min(seen) >= before[2].seconds, "the longest fold so far is what one more may take"


def test_saved_folds_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    retrain_config = RetrainConfig(TrialConfig("tinynet"), 1, 1)
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
    longer = RetrainConfig(TrialConfig("tinynet"), 2, 2)
    assert FoldStore(tmp_path / "state", "trial 0", longer).load(3) == {}
    (file,) = (tmp_path / "state").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert store.load(3) == {}
    assert "is damaged, and what it held is trained again" in caplog.text
    for other in ([1, 2], {"rows": 3}, {"rows": torch.ones(2)}, torch.ones(2), None, "text"):
        torch.save(other, file)
        assert store.load(3) == {}


def test_a_fold_that_fails_says_why(context: TrainingContext) -> None:
    unknown = replace(FROZEN, config=replace(FROZEN.config, backbone="no_such_network"))
    with pytest.raises(FoldError, match=r"fold \d cannot be trained: \w+: .*'no_such_network'"):
        run(context, unknown)
