import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import (
    Experiment,
    ListSessionGroupsRequest,
    ListSessionGroupsResponse,
    Status,
)
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from search.reporting.tensorboard.event_file import append_summary
from search.reporting.tensorboard.trial_boards import TrialBoards, experiment_summary
from spaces.base import Space
from spaces.sources import digits
from trainables.trial_result import TrialResult

SPACE = Space(
    source=digits(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "class_weights": CategoricalDistribution([False, True]),
        "mixup": CategoricalDistribution([0, 0.2]),
        "batch_size": 64,
    },
)
PARAMS = {
    "backbone": "cnn",
    "lr": 0.01,
    "freeze_depth": 3,
    "class_weights": True,
    "mixup": 0.2,
}
STATUS = "status: 1 complete, 2 pruned, 3 failed, 0 running"
ALL_STATUSES = (
    Status.STATUS_UNKNOWN,
    Status.STATUS_SUCCESS,
    Status.STATUS_FAILURE,
    Status.STATUS_RUNNING,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spring" / "tensorboard"


def epoch(number: int) -> TrialResult:
    """An epoch whose validation accuracy is best at epoch 2."""
    accuracy = 0.9 if number == 2 else 0.5
    return TrialResult(
        epoch=number,
        train_loss=1 / number,
        train_accuracy=0.8,
        train_macro_f1=0.75,
        val_loss=2 / number,
        val_accuracy=accuracy,
        val_macro_f1=accuracy - 0.1,
        lr=0.01,
        seconds=1.5,
        images_per_second=100.0,
        gpu_memory_mb=12.0,
        best_val_accuracy=0.9 if number >= 2 else 0.5,
        best_epoch=min(number, 2),
        trained_seconds=1.5 * number,
    )


def run_trial(boards: TrialBoards, number: int, n_epochs: int, state: str) -> None:
    boards.trial_started(number, PARAMS)
    for i in range(1, n_epochs + 1):
        boards.trial_epoch(number, epoch(i))
    failed = TrialResult(failure="ValueError: <b>no</b>")
    boards.trial_ended(number, state, failed if state == "failed" else epoch(max(1, n_epochs)))


def read_hparams(folder: Path) -> tuple[Experiment, ListSessionGroupsResponse]:
    """Read what TensorBoard's HParams page shows of a folder, beside the board of its run."""
    append_summary(folder / "overview" / "events.out.tfevents.0", 0, experiment_summary(SPACE))
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    plugin = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request_context = context.RequestContext()
    request = ListSessionGroupsRequest(
        start_index=0, slice_size=1000, allowed_statuses=ALL_STATUSES, include_metrics=True
    )
    groups = Handler(request_context, plugin, "", request).run()
    metadata = plugin.hparams_metadata(request_context, "")
    experiment = plugin.experiment_from_metadata(request_context, "", True, metadata, [])
    return experiment, groups


def read_trial(folder: Path, number: int) -> EventAccumulator:
    events = EventAccumulator(str(folder / "trials" / str(number)))
    events.Reload()
    return events


def test_every_trial_is_a_session_group_with_parameters_and_metrics(
    folder: Path,
) -> None:
    boards = TrialBoards(folder, SPACE)
    run_trial(boards, 0, 3, "complete")
    run_trial(boards, 1, 1, "pruned")
    run_trial(boards, 2, 2, "failed")
    run_trial(boards, 3, 0, "failed")
    boards.trial_started(4, PARAMS)
    boards.trial_epoch(4, epoch(1))
    boards.trial_started(5, PARAMS)

    _, response = read_hparams(folder)

    groups = {group.name: group for group in response.session_groups}
    assert sorted(groups) == [f"000{number}/spring" for number in range(6)]
    for group in groups.values():
        assert len(group.sessions) == 1
        assert {name: _value(v) for name, v in group.hparams.items()} == PARAMS
    shown = {
        name: {metric.name.tag: metric.value for metric in group.metric_values}
        for name, group in groups.items()
    }
    nothing = pytest.approx(math.nan, nan_ok=True)
    assert shown["0000/spring"] == metrics(pytest.approx(0.9), 2, 4.5, "complete")
    assert shown["0001/spring"] == metrics(0.5, 1, 1.5, "pruned")
    assert shown["0002/spring"] == metrics(pytest.approx(0.9), 2, 3.0, "failed")
    assert shown["0003/spring"] == metrics(nothing, 0, 0.0, "failed")
    assert shown["0004/spring"] == metrics(0.5, 1, 1.5, "running")
    assert shown["0005/spring"] == metrics(nothing, 0, 0.0, "running")
    statuses = [groups[f"000{number}/spring"].sessions[0].status for number in range(6)]
    good, bad, no_end = Status.STATUS_SUCCESS, Status.STATUS_FAILURE, Status.STATUS_UNKNOWN
    assert statuses == [good, good, bad, bad, no_end, no_end]


def metrics(accuracy: Any, epoch: int, seconds: float, status: str) -> dict[str, Any]:
    statuses = ("running", "complete", "pruned", "failed")
    return {
        "trial/best_validation_accuracy": accuracy,
        "trial/best_epoch": epoch,
        "trial/seconds": seconds,
        "trial/status": statuses.index(status),
    }


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind"))


def test_parameters_have_their_domains_and_metrics_their_names(folder: Path) -> None:
    TrialBoards(folder, SPACE).close()
    assert not folder.exists(), "no run without a trial"

    experiment, _ = read_hparams(folder)

    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == set(SPACE.distributions)
    intervals = {
        name: (infos[name].domain_interval.min_value, infos[name].domain_interval.max_value)
        for name in ("lr", "freeze_depth")
    }
    assert intervals == {"lr": (1e-4, 1e-1), "freeze_depth": (0.0, 5.0)}
    choices = {
        name: [_value(value) for value in infos[name].domain_discrete.values]
        for name in ("backbone", "class_weights", "mixup")
    }
    assert choices == {
        "backbone": ["cnn", "tinynet"],
        "class_weights": [False, True],
        "mixup": [0.0, 0.2],
    }
    titles = [info.display_name for info in experiment.metric_infos]
    assert titles == ["best validation accuracy", "best epoch", "seconds", STATUS]


def test_curves_have_a_point_an_epoch_as_soon_as_it_ends(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    boards.trial_started(7, PARAMS)
    boards.trial_epoch(7, epoch(1))
    boards.trial_epoch(7, epoch(2))

    events = read_trial(folder, 7)

    points = [(point.step, point.value) for point in events.Scalars("loss/train")]
    assert points == [(1, 1.0), (2, 0.5)]
    last = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    assert last == pytest.approx(
        {
            "loss/train": 0.5,
            "loss/validation": 1.0,
            "accuracy/train": 0.8,
            "accuracy/validation": 0.9,
            "macro_f1/train": 0.75,
            "macro_f1/validation": 0.8,
            "training/learning_rate": 0.01,
            "training/images_per_second": 100.0,
            "training/gpu_memory_mb": 12.0,
            **metrics(0.9, 2, 3.0, "running"),
        }
    )


def test_the_outcome_is_shown_as_text(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    run_trial(boards, 0, 3, "complete")
    run_trial(boards, 1, 1, "pruned")
    run_trial(boards, 2, 2, "failed")

    outcomes = [
        read_trial(folder, number).Tensors("outcome")[0].tensor_proto.string_val[0].decode()
        for number in range(3)
    ]
    assert outcomes == [
        "complete, 3 epochs",
        "pruned after epoch 1",
        "failed: ValueError: <b>no</b>",
    ]


def test_a_resumed_run_writes_nothing_twice(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    run_trial(boards, 0, 2, "complete")
    boards.trial_started(1, PARAMS)
    boards.trial_epoch(1, epoch(1))
    boards.close()

    boards = TrialBoards(folder, SPACE)
    boards.trial_started(1, PARAMS)
    boards.trial_epoch(1, epoch(2))
    boards.trial_ended(1, "complete", epoch(2))
    run_trial(boards, 2, 1, "pruned")

    _, response = read_hparams(folder)
    assert [group.name for group in response.session_groups] == [
        f"000{number}/spring" for number in range(3)
    ]
    assert all(len(group.metric_values) == 4 for group in response.session_groups)
    steps = [point.step for point in read_trial(folder, 1).Scalars("training/learning_rate")]
    assert steps == [1, 2]
    assert response.session_groups[1].sessions[0].status == Status.STATUS_SUCCESS


def test_no_file_stays_open_and_files_are_small(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    for number in range(20):
        boards.trial_started(number, PARAMS)
        for i in range(1, 21):
            boards.trial_epoch(number, epoch(i))

    open_files = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert not [path for path in open_files if "tfevents" in path.name]
    (path,) = (folder / "trials" / "0").iterdir()
    assert path.stat().st_size < 20_000


def test_the_longest_trial_has_a_small_file_and_its_last_metrics(folder: Path) -> None:
    boards = TrialBoards(folder, dataclasses.replace(SPACE, epochs=10_000))
    boards.trial_started(0, PARAMS)
    for i in range(1, 10_001):
        boards.trial_epoch(0, epoch(i))
    boards.trial_ended(0, "complete", epoch(10_000))

    (path,) = (folder / "trials" / "0").iterdir()
    assert path.stat().st_size <= 200_000
    events = read_trial(folder, 0)
    assert events.Scalars("loss/train")[0].step == 1
    assert len(events.Scalars("loss/train")) > 300
    assert events.Scalars("trial/seconds")[-1].value == 15_000.0


def test_no_gpu_has_no_curve_of_its_memory(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    boards.trial_started(0, PARAMS)
    boards.trial_epoch(0, dataclasses.replace(epoch(1), gpu_memory_mb=0.0))
    assert "training/gpu_memory_mb" not in read_trial(folder, 0).Tags()["scalars"]


def test_what_is_written_after_a_crash_is_read(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    boards.trial_started(0, PARAMS)
    boards.trial_epoch(0, epoch(1))
    path = folder / "trials" / "0" / "events.out.tfevents.trial"
    path.write_bytes(path.read_bytes()[:-5])

    boards = TrialBoards(folder, SPACE)
    boards.trial_started(0, PARAMS)
    boards.trial_epoch(0, epoch(2))

    assert [point.step for point in read_trial(folder, 0).Scalars("loss/train")] == [1, 2]


def test_trials_that_ended_as_the_run_was_killed_are_closed(folder: Path) -> None:
    boards = TrialBoards(folder, SPACE)
    run_trial(boards, 0, 2, "complete")
    whole = (folder / "trials" / "0" / "events.out.tfevents.trial").read_bytes()
    boards.trial_started(1, PARAMS)
    boards.trial_epoch(1, epoch(1))

    ended = [
        (0, PARAMS, "complete", epoch(2)),
        (1, PARAMS, "pruned", epoch(1)),
        (2, PARAMS, "failed", TrialResult(failure="no memory")),
    ]
    TrialBoards(folder, SPACE).catch_up(ended)

    assert (folder / "trials" / "0" / "events.out.tfevents.trial").read_bytes() == whole
    groups = read_hparams(folder)[1].session_groups
    statuses = [group.sessions[0].status for group in groups]
    good, bad = Status.STATUS_SUCCESS, Status.STATUS_FAILURE
    assert statuses == [good, good, bad]
    assert [group.metric_values[3].value for group in groups] == [1.0, 2.0, 3.0]
