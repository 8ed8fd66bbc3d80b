"""Event files for TensorBoard: each trial's curves, and HParams from its start.

    tensorboard --logdir results/<run>/tensorboard

A trial's file is opened for each event and closed again, so that a search of any length holds none
open, what was written is seen at once, and a run that is carried on goes on in the same files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import (
    Discrete,
    Domain,
    HParam,
    IntInterval,
    Metric,
    RealInterval,
    hparams_config_pb,
    hparams_pb,
)
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from spaces.base import Space

_CURVES = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/val": "val_accuracy",
    "macro_f1/val": "val_macro_f1",
    "lr": "lr",
    "images_per_second": "images_per_second",
    "gpu_memory_mb": "gpu_memory_mb",
}
"""Scalars of every epoch, by the key of the epoch's result that each is read from."""

_METRICS = {
    "best_val_accuracy": "best_val_accuracy",
    "best_epoch": "best_epoch",
    "seconds": "trained_seconds",
}
"""What HParams shows beside a trial's parameters and status, by the result's key as well."""

_DISPLAY_NAMES = {
    "best_val_accuracy": "best validation accuracy",
    "best_epoch": "best epoch",
    "seconds": "seconds",
}


class TrialBoards:
    """Writes an event file a trial; see `search.trials.TrialListener`."""

    def __init__(self, folder: Path, space: Space) -> None:
        """Begin, or carry on.

        Args:
            folder: `tensorboard/` of the run folder; trials go to `trials/<number>/` in it.
            space: What is searched.
        """
        self._folder = folder / "trials"
        self._run = folder.absolute().parent.name
        self._epochs: dict[int, int] = {}  # that each running trial has ended
        experiment = self._folder / "events.out.tfevents.experiment"
        if not experiment.exists():
            _append(experiment, 0, _experiment(space))

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """Show the trial with its parameters; one that is carried on is shown already."""
        self._epochs[number] = 0
        if self._path(number).exists():
            return
        # Sessions of one group count as one trial, so the name is unique: two trials may have the
        # same parameters, and two runs side by side the same number.
        _append(self._path(number), 0, hparams_pb(params, f"{self._run}/{number:04d}"))

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """Add an epoch to the curves, and bring the metrics up to date."""
        self._epochs[number] = result["epoch"]
        _append(self._path(number), result["epoch"], _scalars(_CURVES | _METRICS, result))

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """Close the trial's session; what was stopped early has succeeded as well."""
        epoch = self._epochs.pop(number, 0)
        if not self._path(number).exists():
            return  # It never started, so its parameters are not known here.
        outcomes = {
            "complete": f"ran to its end, epoch {epoch}",
            "pruned": f"stopped early, after epoch {epoch}",
            "failed": f"failed: {result.get('reason')}",
        }
        status = Status.STATUS_FAILURE if state == "failed" else Status.STATUS_SUCCESS
        _append(self._path(number), epoch, text_pb("outcome", outcomes[state]))
        _append(self._path(number), epoch, _session_end(status))

    def close(self) -> None:
        """Close all: a trial that has not ended stays open, and may be carried on."""
        self._epochs.clear()

    def _path(self, number: int) -> Path:
        return self._folder / str(number) / "events.out.tfevents.trial"


def _experiment(space: Space) -> Summary:
    """Describe the searched parameters with their domains, and the metrics."""
    return hparams_config_pb(
        hparams=[HParam(name, _domain(d)) for name, d in space.distributions.items()],
        metrics=[Metric(tag, display_name=_DISPLAY_NAMES[tag]) for tag in _METRICS],
        time_created_secs=time.time(),
    )


def _domain(distribution: BaseDistribution) -> Domain:
    """Return a parameter's numeric interval, or its choices."""
    if isinstance(distribution, FloatDistribution):
        return RealInterval(float(distribution.low), float(distribution.high))
    if isinstance(distribution, IntDistribution):
        return IntInterval(distribution.low, distribution.high)
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if any(isinstance(choice, float) for choice in choices):  # all of one type are wanted
            return Discrete([float(choice) for choice in choices])  # type: ignore[arg-type]
        return Discrete(choices)
    raise TypeError(f"no domain for {distribution}")


def _session_end(status: int) -> Summary:
    """Return what ends a trial's session; TensorBoard's own function for it needs TensorFlow."""
    end = HParamsPluginData(
        session_end_info=SessionEndInfo(status=status, end_time_secs=time.time())
    )
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(end),
        tensor=metadata.NULL_TENSOR,
    )
    return Summary(value=[value])


def _scalars(keys: Mapping[str, str], result: Mapping[str, Any]) -> Summary:
    """Return scalars, each by its tag and the key of its value in `result`."""
    values = [Summary.Value(tag=tag, simple_value=float(result[key])) for tag, key in keys.items()]
    return Summary(value=values)


def _append(path: Path, step: int, summary: Summary) -> None:
    """Append one event to a file, which begins with the format's version."""
    events = [Event(wall_time=time.time(), step=step, summary=summary)]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
