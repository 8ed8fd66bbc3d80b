"""Trials under Ray Tune: failures, lost workers, memory, and what the study records."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import optuna
import psutil
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search.cluster.shared_file import StoredObject
from search.runs.storage import LocalFiles
from search.tuning.checkpoints import CheckpointStore, start_checkpoint_store
from search.tuning.study import best_epoch, learning_curves, open_storage, open_study
from search.tuning.trial_events import TrialEvents
from search.tuning.tune import SearchPlan, _TuneCallback, run_trials
from spaces.base import Space
from spaces.sources import digits
from trainables.disk_full import is_disk_full
from trainables.trial import ImageTrial
from trainables.trial_result import TrialResult
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
        epochs=4,
        **fields,
    )


@pytest.fixture
def context(ray_session: None) -> TrainingContext:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES) % N_CLASSES
    table = torch.randint(0, 90, (N_IMAGES, SIZE, SIZE, 3), generator=generator)
    table[torch.arange(N_IMAGES), :, :, labels] += 120
    return TrainingContext(
        table=StoredObject.put(table.to(torch.uint8).numpy()),
        labels=labels.numpy(),
        n_classes=N_CLASSES,
        image_size=SIZE,
        flip=False,
        weights={},
        feature_source=None,
        heads={},
        epochs=4,
        patience=None,
        seed=0,
    )


class Events:
    """Records what a `TrialCallback` is called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        self.seen.append(("started", number))

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        self.seen.append(("epoch", number, result.epoch))

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        self.seen.append(("ended", number, state))


def run(
    context: TrainingContext,
    space: Space,
    folder: Path,
    n_trials: int,
    callback: Any = None,
    files: LocalFiles | None = None,
    **plan: Any,
) -> optuna.Study:
    storage = open_storage(folder)
    fields = {
        "sampler": "random",
        "scheduler": "none",
        "time_is_up": lambda: False,
        "max_concurrent": 1,
        "interrupted": lambda: False,
        **plan,
    }
    rows = {"train": np.arange(36), "val": np.arange(36, N_IMAGES)}
    checkpoints = start_checkpoint_store(folder / "trials", 1, {}, files)  # type: ignore[arg-type]
    run_trials(
        SearchPlan(n_trials=n_trials, gpu_fraction={"tinynet": 0.0}, **fields),
        storage,
        space,
        context,
        rows,
        checkpoints,
        folder / "trials",
        [callback] if callback else [],
    )
    return open_study(storage)


def test_errors_may_hold_bytes_that_are_no_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of the user's own network about a file of such a name."""
    # pytest-xdist cannot send a captured log with such bytes.
    monkeypatch.setattr(logging.getLogger("search.tuning.tune"), "disabled", True)
    (tmp_path / "0").mkdir()
    stub: Any = MagicMock(storage_error=None)
    callback = _TuneCallback(tmp_path, stub, stub, TrialEvents(make_space(), []))
    failed = TrialResult(failure="no \udcff", traceback="Traceback: no \udcff")
    trial: Any = SimpleNamespace(config={"number": 0}, last_result=failed.as_dict())
    callback.on_trial_complete(0, [], trial)
    assert (tmp_path / "0" / "error.txt").read_text() == "Traceback: no ?"
    trial.error_file = tmp_path / "of Ray.txt"
    trial.error_file.write_bytes(b"no \xff")
    callback.on_trial_error(0, [], trial)


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
    assert complete.value == pytest.approx(best_epoch(complete).val_accuracy, abs=1e-6)
    assert not list((tmp_path / "trials").rglob("checkpoint.pt"))


class KillOnce(Events):
    """Kills the trial's worker after its second epoch."""

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        super().trial_epoch(number, result)
        if result.epoch == 2 and ("killed",) not in self.seen:
            self.seen.append(("killed",))
            (worker,) = [
                process
                for process in psutil.Process().children(recursive=True)
                if process.cmdline()[:1] and "ray::ImageTrial" in process.cmdline()[0]
            ]
            worker.kill()


def test_a_trial_is_continued_after_its_worker_was_killed(
    context: TrainingContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = KillOnce()
    study = run(context, make_space(), tmp_path, 2, callback)
    (line,) = [r.getMessage() for r in caplog.records if "lost its worker" in r.getMessage()]
    assert line.startswith("trial 0 lost its worker: ")
    assert "The actor died" in line  # with what Ray knows of the reason
    assert ("killed",) in callback.seen
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert all(sorted(curve) == [1, 2, 3, 4] for curve in learning_curves(study).values())
    epochs = [event[2] for event in callback.seen if event[:2] == ("epoch", 0)]
    assert epochs == [1, 2, 3, 4]  # each reported once
    assert callback.seen.count(("ended", 0, "complete")) == 1


class StopAfter(Events):
    """Requests to stop after a number of epochs."""

    def __init__(self, n_epochs: int) -> None:
        super().__init__()
        self._left = n_epochs

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        super().trial_epoch(number, result)
        self._left -= 1

    def requested(self) -> bool:
        return self._left <= 0


def outcome(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.state, t.params, t.value, t.intermediate_values) for t in study.trials]


@pytest.mark.long
def test_a_search_in_pieces_decides_as_one_in_one_piece(
    context: TrainingContext, tmp_path: Path
) -> None:
    """The same seed, one trial after the other: the same trials, rungs and epochs, bit by bit."""
    # Some of its trials are stopped at the first rung, before the breaks and after.
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
    n_within = 0
    for n_epochs in (1, 2, 3, 1, 1):
        events = StopAfter(n_epochs)
        pieces = run(
            context, space, folders[1], callback=events, interrupted=events.requested, **plan
        )
        epochs += [event[1:] for event in events.seen if event[0] == "epoch"]
        n_within += bool(pieces.get_trials(states=(TrialState.RUNNING,)))
    # Most breaks come within a trial; which trials end early depends on a processor's rounding.
    assert n_within >= 3
    last = Events()
    pieces = run(context, space, folders[1], callback=last, **plan)
    epochs += [event[1:] for event in last.seen if event[0] == "epoch"]
    assert outcome(pieces) == outcome(whole)
    assert {trial.state for trial in whole.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(epochs) == len(set(epochs)) == sum(map(len, learning_curves(whole).values()))


class FillingDisk(LocalFiles):
    """A disk on which there is no space for checkpoints once another file says so."""

    def write(self, name: str, content: bytes) -> None:
        if name.endswith("checkpoint.pt") and (self.base / "full").exists():
            raise OSError(errno.ENOSPC, "no space left on device", name)
        super().write(name, content)


class FullDisk(Events):
    """There is no space for a trial's second checkpoint."""

    def __init__(self, trials: Path) -> None:
        super().__init__()
        self._trials = trials

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        super().trial_epoch(number, result)
        (self._trials / "full").touch()


@pytest.mark.long
def test_a_full_disk_ends_the_search_and_fails_no_trial(
    context: TrainingContext, tmp_path: Path
) -> None:
    space = make_space()
    files = FillingDisk(tmp_path / "trials")
    with pytest.raises(OSError, match="no space left") as caught:
        run(context, space, tmp_path, 2, FullDisk(files.base), files=files)
    assert is_disk_full(caught.value)
    study = open_study(open_storage(tmp_path))
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    assert {number: sorted(curve) for number, curve in learning_curves(study).items()} == {0: [1]}
    done = run(context, space, tmp_path, 2)  # there is space again
    assert [trial.state for trial in done.trials] == [TrialState.COMPLETE] * 2
    assert all(sorted(curve) == [1, 2, 3, 4] for curve in learning_curves(done).values())


@pytest.fixture
def reused(context: TrainingContext, tmp_path: Path) -> ImageTrial:
    config = {"number": 0, "params": {"backbone": "tinynet", "freeze_depth": 3}, "epochs": 1}
    made = ImageTrial.__new__(ImageTrial)  # as an actor, without Tune's folders
    made.setup(
        config,
        context=context,
        train_rows=np.arange(36),
        val_rows=np.arange(36, N_IMAGES),
        checkpoints=CheckpointStore(tmp_path, 1, {}),
    )
    return made


@pytest.mark.long
def test_a_reused_worker_gives_memory_back(reused: ImageTrial) -> None:
    process = psutil.Process()
    sizes = []
    for number in range(1, 201):
        params = {"backbone": "tinynet", "freeze_depth": number % 6, "augment": 0.5}
        reused.reset_config({"number": number, "params": params, "epochs": 1})
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
    backbones: list[str] = []

    def lengths(backbone: str) -> dict[int, int]:
        backbones.append(backbone)
        return {4: 2, 5: 3}

    study = run(context, space, tmp_path, 6, lengths=lengths)
    first, *others = [trial.params["freeze_depth"] for trial in study.trials]
    assert first == 2
    assert len(others) == 5
    assert {4, 5} >= set(others)
    assert set(backbones) == {"tinynet"}
    for trial in study.trials:
        length = 3 if trial.params["freeze_depth"] == 5 else 2
        assert list(trial.intermediate_values) == list(range(1, length + 1))
