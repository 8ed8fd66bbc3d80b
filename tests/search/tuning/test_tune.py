"""Trials under Ray Tune: failures, lost workers, memory, and what the study is told."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import ray
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search.tuning import throughput
from search.tuning.checkpoints import CheckpointStore, start_checkpoint_store
from search.tuning.study import curves, open_study
from search.tuning.throughput import measure_throughput
from search.tuning.tune import SearchPlan, run_trials
from spaces.base import Space
from spaces.sources import digits
from trainables import trial as trial_module
from trainables.disk_full import is_disk_full
from trainables.trial import ImageTrial
from trainables.worker import TrainingContext

pytestmark = pytest.mark.slow

N_IMAGES, N_CLASSES, SIZE = 48, 3, 32


def make_space(**fields: Any) -> Space:
    return Space(
        source=digits(),
        params={
            "backbone": CategoricalDistribution(["tinynet"]),
            "lr": FloatDistribution(1e-3, 1e-2, log=True),
            "freeze_depth": 5,
            "batch_size": 16,
        },
        image_size=SIZE,
        resize_size=SIZE,
        **fields,
    )


@pytest.fixture
def context(ray_session: None) -> TrainingContext:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    table = torch.randint(0, 90, (N_IMAGES, SIZE, SIZE, 3), generator=generator)
    table[torch.arange(N_IMAGES), :, :, labels] += 120
    return TrainingContext(
        table=ray.put(table.to(torch.uint8).numpy()),
        labels=labels.numpy(),
        n_classes=N_CLASSES,
        image_size=SIZE,
        flip=False,
        weights={},
        n_views=2,
        feature_cache=None,
        heads={},
        epochs=4,
        patience=None,
        seed=0,
    )


class Events:
    """Listens to trials."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        self.seen.append(("started", number))

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        self.seen.append(("epoch", number, result["epoch"]))

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        self.seen.append(("ended", number, state))


def run(
    context: TrainingContext,
    space: Space,
    folder: Path,
    n_trials: int,
    callback: Any = None,
    **plan: Any,
) -> optuna.Study:
    study = open_study(f"sqlite:///{folder / 'study.db'}", space)
    fields = {
        "sampler": "random",
        "scheduler": "none",
        "time_is_up": lambda: False,
        "concurrent": 1,
        "interrupted": lambda: False,
        **plan,
    }
    rows = {"train": np.arange(36), "val": np.arange(36, N_IMAGES)}
    checkpoints = start_checkpoint_store(folder / "trials", 1, {})
    run_trials(
        SearchPlan(n_trials=n_trials, gpu_fraction={"tinynet": 0.0}, **fields),
        study,
        space,
        context,
        rows,
        checkpoints,
        folder / "trials",
        [callback] if callback else [],
    )
    return study


def test_a_trial_that_explodes_fails_with_its_reason(
    context: TrainingContext, tmp_path: Path
) -> None:
    space = make_space()
    params = {**space.params, "hidden_units": CategoricalDistribution([0, 8]), "lr": 1e-3}
    space = replace(space, params=params, first_trials=({"hidden_units": 0}, {"hidden_units": 8}))
    # Only a linear head begins as the probe's, which here is damaged.
    poisoned = {"weight": torch.full((N_CLASSES, 128), torch.nan), "bias": torch.zeros(N_CLASSES)}
    events = Events()
    study = run(replace(context, heads={"tinynet": poisoned}), space, tmp_path, 2, events)
    failed, complete = study.trials
    assert failed.state == TrialState.FAIL
    assert failed.value is None
    assert failed.user_attrs["reason"] == ("the training loss is nan in epoch 1 (lr 0.001, adamw)")
    assert "Traceback" in (tmp_path / "trials" / "0" / "error.txt").read_text()
    assert events.seen.count(("ended", 0, "failed")) == 1
    assert complete.state == TrialState.COMPLETE
    assert complete.value == max(complete.intermediate_values.values())
    assert not list((tmp_path / "trials").rglob("checkpoint.pt"))


class KillOnce(Events):
    """Kills the trial's worker after its second epoch."""

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        super().trial_epoch(number, result)
        if result["epoch"] == 2 and ("killed",) not in self.seen:
            self.seen.append(("killed",))
            os.kill(result["pid"], signal.SIGKILL)


def test_a_trial_goes_on_after_its_worker_was_killed(
    context: TrainingContext, tmp_path: Path
) -> None:
    callback = KillOnce()
    study = run(context, make_space(), tmp_path, 2, callback)
    assert ("killed",) in callback.seen
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert all(sorted(curve) == [1, 2, 3, 4] for curve in curves(study).values())
    epochs = [event[2] for event in callback.seen if event[:2] == ("epoch", 0)]
    assert epochs == [1, 2, 3, 4]  # each told once
    assert callback.seen.count(("ended", 0, "complete")) == 1


class StopAfter(Events):
    """Asks to stop after a number of epochs."""

    def __init__(self, n_epochs: int) -> None:
        super().__init__()
        self._left = n_epochs

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        super().trial_epoch(number, result)
        self._left -= 1

    def asked(self) -> bool:
        return self._left <= 0


def outcome(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.state, t.params, t.value, t.intermediate_values) for t in study.trials]


def test_a_search_in_pieces_decides_as_one_in_one_piece(
    context: TrainingContext, tmp_path: Path
) -> None:
    """The same seed, a trial at a time: the same trials, rungs, and epochs, bit by bit."""
    # Of these, some are stopped at the first rung, before the breaks and after.
    space = make_space()
    space = replace(
        space,
        params={**space.params, "lr": FloatDistribution(1e-3, 1e-1, log=True)},
        first_trials=tuple({"lr": lr} for lr in (3e-2, 2e-2, 3e-3, 2.5e-2)),
    )
    folders = [tmp_path / name for name in ("whole", "pieces")]
    plan = {"n_trials": 6, "sampler": "tpe", "scheduler": "asha"}
    (folders[0]).mkdir()
    whole = run(context, space, folders[0], **plan)
    folders[1].mkdir()
    epochs: list[tuple[int, int]] = []
    for n_epochs in (1, 2, 3, 1, 1):  # each break comes within a trial
        events = StopAfter(n_epochs)
        pieces = run(context, space, folders[1], callback=events, interrupted=events.asked, **plan)
        epochs += [event[1:] for event in events.seen if event[0] == "epoch"]
        assert pieces.get_trials(states=(TrialState.RUNNING,))
    last = Events()
    pieces = run(context, space, folders[1], callback=last, **plan)
    epochs += [event[1:] for event in last.seen if event[0] == "epoch"]
    assert outcome(pieces) == outcome(whole)
    assert {trial.state for trial in whole.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(epochs) == len(set(epochs)) == sum(map(len, curves(whole).values()))


class FullDisk(Events):
    """There is no room for a trial's second checkpoint."""

    def __init__(self, trials: Path) -> None:
        super().__init__()
        self._trials = trials

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        super().trial_epoch(number, result)
        (self._trials / str(number) / "checkpoint.pt.partial").symlink_to("/dev/full")


def test_a_full_disk_ends_the_search_and_fails_no_trial(
    context: TrainingContext, tmp_path: Path
) -> None:
    space = make_space()
    with pytest.raises(OSError, match="no space left") as caught:
        run(context, space, tmp_path, 2, FullDisk(tmp_path / "trials"))
    assert is_disk_full(caught.value)
    study = open_study(f"sqlite:///{tmp_path / 'study.db'}", space)
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    assert {number: sorted(curve) for number, curve in curves(study).items()} == {0: [1]}
    (tmp_path / "trials" / "0" / "checkpoint.pt.partial").unlink()  # room was made
    done = run(context, space, tmp_path, 2)
    assert [trial.state for trial in done.trials] == [TrialState.COMPLETE] * 2
    assert all(sorted(curve) == [1, 2, 3, 4] for curve in curves(done).values())


class LocalKeeper:
    """The keeper's methods as `ImageTrial` calls them, without an actor."""

    def __init__(self, folder: Path) -> None:
        checkpoints = CheckpointStore(folder, 1, {})
        for name in ("would_keep", "submit", "checkpoint", "last_checkpoint", "forget"):
            setattr(self, name, Remote(getattr(checkpoints, name)))


class Remote:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        return ray.put(self._method(*arguments))


@pytest.fixture
def reused(context: TrainingContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageTrial:
    monkeypatch.setattr(trial_module, "threads_of_worker", lambda: 1)
    config = {"number": 0, "params": {"backbone": "tinynet", "freeze_depth": 3}, "reported": 0}
    made = ImageTrial.__new__(ImageTrial)  # as an actor, without Tune's folders
    made.setup(
        config,
        context=replace(context, epochs=1),
        train_rows=np.arange(36),
        val_rows=np.arange(36, N_IMAGES),
        checkpoints=LocalKeeper(tmp_path),
    )
    return made


def test_a_reused_worker_gives_memory_back(reused: ImageTrial) -> None:
    process = psutil.Process()
    sizes = []
    for number in range(1, 201):
        params = {"backbone": "tinynet", "freeze_depth": number % 6, "augment": 0.5}
        reused.reset_config({"number": number, "params": params, "reported": 0})
        assert reused.step()["done"]
        if number % 10 == 0:
            sizes.append(process.memory_info().rss / 2**20)
    # The first trials fill caches; the 150 after them may leave 0.2 MB each at the most.
    assert sizes[-1] - sizes[4] < 30, sizes


def test_a_search_short_of_time_freezes_deeper(context: TrainingContext, tmp_path: Path) -> None:
    """A first trial stays as the space has it."""
    space = make_space()
    space = replace(
        space,
        params={**space.params, "freeze_depth": IntDistribution(0, 5)},
        first_trials=({"backbone": "tinynet", "freeze_depth": 2},),
    )
    asked: list[str] = []

    def min_freeze_depth(backbone: str) -> int:
        asked.append(backbone)
        return 4

    study = run(context, space, tmp_path, 6, min_freeze_depth=min_freeze_depth)
    first, *others = [trial.params["freeze_depth"] for trial in study.trials]
    assert first == 2
    assert len(others) == 5
    assert {4, 5} >= set(others)
    assert set(asked) == {"tinynet"}


def test_the_pace_is_measured_of_every_stage(context: TrainingContext) -> None:
    paces = measure_throughput(context, np.arange(36), {"tinynet": 0.0, "cnn": 0.0})
    assert set(paces) == {"tinynet", "cnn"}
    for seconds in paces.values():
        assert len(seconds) == 5
        assert all(0 < one < 10 for one in seconds)


def test_the_pace_is_measured_where_a_trial_froze_all_before(
    context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "threads_of_worker", lambda: 1)
    monkeypatch.setattr(throughput, "compute_with", lambda threads: None)
    trial_module.clone_backbone(context, "tinynet", 5, torch.device("cpu")).freeze(5)
    seconds = throughput._measure._function(context, "tinynet", np.arange(36))
    assert len(seconds) == 5
