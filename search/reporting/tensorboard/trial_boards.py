"""Show each trial in TensorBoard: its curves, and HParams from its start.

The whole run is in `search.reporting.tensorboard.run_board`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

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
from spaces.rules import Value
from trainables.trial_result import TrialResult

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
"""Scalars of every epoch: tag and field of `TrialResult`."""

_GPU_MEMORY = {"training/gpu_memory_mb": "gpu_memory_mb"}
"""Scalars of every epoch on a GPU."""

_METRICS = {
    "trial/best_validation_accuracy": "best_val_accuracy",
    "trial/best_epoch": "best_epoch",
    "trial/seconds": "trained_seconds",
}
"""What HParams shows beside a trial's parameters: tag and field of `TrialResult`."""

_STATUS = "trial/status"
_STATUSES = {"running": 0, "complete": 1, "pruned": 2, "failed": 3}

_METRIC_TITLES = {
    "trial/best_validation_accuracy": "best validation accuracy",
    "trial/best_epoch": "best epoch",
    "trial/seconds": "seconds",
    _STATUS: "status: 1 complete, 2 pruned, 3 failed, 0 running",
}
"""Titles of the columns. TensorBoard's metrics are numbers, so one title says what they mean."""

_MAX_POINTS = 350
"""Points of a curve; longer trials skip epochs, which keeps their files below 200 kB."""

_SESSION_END_BYTES = 400
"""Length of the end of a closed trial's file, in which its session's end is found."""


class TrialBoards:
    """Writes one event file per trial; a `search.tuning.trial_events.TrialCallback`."""

    def __init__(self, folder: Path, space: Space) -> None:
        """Begin, or resume.

        Args:
            folder: `tensorboard/` of the run folder; trials go to its `trials/<number>/`.
            space: What is searched.
        """
        self._folder = folder / "trials"
        self._run = folder.absolute().parent.name
        self._stride = math.ceil(space.epochs / _MAX_POINTS)
        self._last: dict[int, TrialResult] = {}  # of each running trial
        for path in self._folder.glob("*/events.out.tfevents.trial"):
            cut_torn_end(path)

    def trial_started(self, number: int, params: Mapping[str, Value]) -> None:
        """Show the trial with its parameters; a resumed one is shown already."""
        self._last[number] = TrialResult()
        if self._path(number).exists():
            return
        # Sessions of one group count as one trial, so the name is unique: two trials may have the
        # same parameters, and two runs side by side the same number. Long names are cut, so the
        # number comes first.
        self._write(number, 0, hparams_pb(params, f"{number:04d}/{self._run}"))
        self._write_metrics(number, TrialResult(), "running")

    def trial_epoch(self, number: int, result: TrialResult) -> None:
        """Add an epoch to the curves, and update the metrics."""
        self._last[number] = result
        if result.epoch % self._stride and result.epoch > 1:
            return
        tags = _CURVES | _GPU_MEMORY if result.gpu_memory_mb else _CURVES
        curves = {tag: getattr(result, field) for tag, field in tags.items()}
        self._write(number, result.epoch, _scalars(curves))
        self._write_metrics(number, result, "running")

    def trial_ended(self, number: int, state: str, result: TrialResult) -> None:
        """Close the trial's session; a pruned trial counts as a success."""
        last = self._last.pop(number, TrialResult())
        if result.epoch:  # a failed trial may end without the metrics of its last epoch
            last = result
        outcomes = {
            "complete": f"complete, {last.epoch} epochs",
            "pruned": f"pruned after epoch {last.epoch}",
            "failed": f"failed: {result.failure}",
        }
        status = Status.STATUS_FAILURE if state == "failed" else Status.STATUS_SUCCESS
        self._write_metrics(number, last, state)
        self._write(number, last.epoch, text_pb("outcome", outcomes[state]))
        self._write(number, last.epoch, _session_end(status))

    def catch_up(self, ended: Iterable[tuple[int, Mapping[str, Value], str, TrialResult]]) -> None:
        """Close the boards of trials that ended just before an earlier session was killed.

        Args:
            ended: Number, parameters, state and last result of each trial.
        """
        for number, params, state, result in ended:
            path = self._path(number)
            end = path.read_bytes()[-_SESSION_END_BYTES:] if path.exists() else b""
            if metadata.SESSION_END_INFO_TAG.encode() not in end:
                self.trial_started(number, params)
                self.trial_ended(number, state, result)

    def close(self) -> None:
        """Forget the running trials; their sessions stay open for a resume."""
        self._last.clear()

    def _write(self, number: int, step: int, summary: Summary) -> None:
        append_summary(self._path(number), step, summary)

    def _write_metrics(self, number: int, result: TrialResult, state: str) -> None:
        values = {tag: getattr(result, field) for tag, field in _METRICS.items()}
        self._write(number, result.epoch, _scalars({**values, _STATUS: _STATUSES[state]}))

    def _path(self, number: int) -> Path:
        return self._folder / str(number) / "events.out.tfevents.trial"


def experiment_summary(space: Space) -> Summary:
    """Describe the searched parameters with their domains, and the metrics, for HParams."""
    return hparams_config_pb(
        hparams=[HParam(name, _domain(d)) for name, d in space.distributions.items()],
        metrics=[Metric(tag, display_name=title) for tag, title in _METRIC_TITLES.items()],
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
        if any(isinstance(choice, float) for choice in choices):  # they must be of one type
            return Discrete([float(choice) for choice in choices])  # type: ignore[arg-type]
        return Discrete(choices)
    raise TypeError(f"no domain for {distribution}")


def _session_end(status: int) -> Summary:
    """Return the end of a trial's session; TensorBoard's own function for it needs TensorFlow."""
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
