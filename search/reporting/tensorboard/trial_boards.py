"""What TensorBoard shows of the trials: each one's curves, and HParams from its start.

    tensorboard --logdir results/<run>/tensorboard

What it shows of the whole run is in `search.reporting.tensorboard.run_board`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
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

from search.reporting.tensorboard.event_file import append_summary, cut_torn_end
from spaces.base import Space

_CURVES = {
    "loss/train": "train_loss",
    "loss/validation": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "val_accuracy",
    "macro_f1/train": "train_macro_f1",
    "macro_f1/validation": "val_macro_f1",
    "training/learning_rate": "lr",
    "training/images_per_second": "images_per_second",
}
"""Scalars of every epoch, by the key of the epoch's result that each is read from."""

_GPU_MEMORY = {"training/gpu_memory_mb": "gpu_memory_mb"}
"""Where there is a GPU."""

_METRICS = {
    "trial/best_validation_accuracy": "best_val_accuracy",
    "trial/best_epoch": "best_epoch",
    "trial/seconds": "trained_seconds",
}
"""What HParams shows beside a trial's parameters, by the result's key as well."""

_STATUS = "trial/status"
_STATUSES = {"running": 0, "complete": 1, "pruned": 2, "failed": 3}

_METRIC_TITLES = {
    "trial/best_validation_accuracy": "best validation accuracy",
    "trial/best_epoch": "best epoch",
    "trial/seconds": "seconds",
    _STATUS: "status",
}
_STATUS_MEANING = "0 runs or was cut off, 1 ran to its end, 2 stopped early, 3 failed"

_NOTHING_YET = {"best_val_accuracy": math.nan, "best_epoch": 0, "trained_seconds": 0.0, "epoch": 0}
"""The result of a trial that has ended no epoch."""

_MAX_POINTS = 350
"""Of a curve; longer trials leave epochs out, which keeps their files below 200 kB."""


_SESSION_END_BYTES = 400
"""Of a file that is complete, the end that names the session's end is well within."""

Outcome = tuple[int, dict[str, Any], str, dict[str, Any]]
"""A trial's number, parameters, state and last result."""


class TrialBoards:
    """Writes an event file a trial; see `search.tuning.tune.TrialCallback`."""

    def __init__(self, folder: Path, space: Space) -> None:
        """Begin, or carry on.

        Args:
            folder: `tensorboard/` of the run folder; trials go to `trials/<number>/` in it.
            space: What is searched.
        """
        self._folder = folder / "trials"
        self._run = folder.absolute().parent.name
        self._stride = math.ceil(space.epochs / _MAX_POINTS)
        self._last: dict[int, dict[str, Any]] = {}  # result of each running trial
        experiment = self._folder / "events.out.tfevents.experiment"
        if not experiment.exists():
            append_summary(experiment, 0, _experiment(space))
        for path in self._folder.glob("*/events.out.tfevents.trial"):
            cut_torn_end(path)

    def trial_started(self, number: int, params: dict[str, Any]) -> None:
        """Show the trial with its parameters; one that is carried on is shown already."""
        self._last[number] = _NOTHING_YET
        if self._path(number).exists():
            return
        # Sessions of one group count as one trial, so the name is unique: two trials may have the
        # same parameters, and two runs side by side the same number.
        self._write(number, 0, hparams_pb(params, f"{self._run}/{number:04d}"))
        self._write_metrics(number, _NOTHING_YET, "running")

    def trial_epoch(self, number: int, result: dict[str, Any]) -> None:
        """Add an epoch to the curves, and bring the metrics up to date."""
        self._last[number] = result
        epoch = result["epoch"]
        if epoch % self._stride and epoch > 1:
            return
        curves = _CURVES | _GPU_MEMORY if result["gpu_memory_mb"] else _CURVES
        self._write(number, epoch, _scalars({tag: result[key] for tag, key in curves.items()}))
        self._write_metrics(number, result, "running")

    def trial_ended(self, number: int, state: str, result: dict[str, Any]) -> None:
        """Close the trial's session; what was stopped early has succeeded as well."""
        last = self._last.pop(number, _NOTHING_YET) | result
        outcomes = {
            "complete": f"ran to its end, epoch {last['epoch']}",
            "pruned": f"stopped early, after epoch {last['epoch']}",
            "failed": f"failed: {last.get('reason')}",
        }
        status = Status.STATUS_FAILURE if state == "failed" else Status.STATUS_SUCCESS
        self._write_metrics(number, last, state)
        self._write(number, last["epoch"], text_pb("outcome", outcomes[state]))
        self._write(number, last["epoch"], _session_end(status))

    def catch_up(self, ended: Iterable[Outcome]) -> None:
        """Close the sessions of trials that ended just before an earlier session was killed."""
        for number, params, state, result in ended:
            path = self._path(number)
            end = path.read_bytes()[-_SESSION_END_BYTES:] if path.exists() else b""
            if metadata.SESSION_END_INFO_TAG.encode() not in end:
                self.trial_started(number, params)
                self.trial_ended(number, state, result)

    def close(self) -> None:
        """Close all: a trial that has not ended stays open, and may be carried on."""
        self._last.clear()

    def _write(self, number: int, step: int, summary: Summary) -> None:
        append_summary(self._path(number), step, summary)

    def _write_metrics(self, number: int, result: Mapping[str, Any], state: str) -> None:
        values = {tag: result[key] for tag, key in _METRICS.items()}
        self._write(number, result["epoch"], _scalars({**values, _STATUS: _STATUSES[state]}))

    def _path(self, number: int) -> Path:
        return self._folder / str(number) / "events.out.tfevents.trial"


def _experiment(space: Space) -> Summary:
    """Describe the searched parameters with their domains, and the metrics."""
    return hparams_config_pb(
        hparams=[HParam(name, _domain(d)) for name, d in space.distributions.items()],
        metrics=[
            Metric(tag, display_name=title, description=_STATUS_MEANING if tag == _STATUS else None)
            for tag, title in _METRIC_TITLES.items()
        ],
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


def _scalars(values: Mapping[str, float]) -> Summary:
    """Return scalars by their tags."""
    return Summary(
        value=[Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]
    )
