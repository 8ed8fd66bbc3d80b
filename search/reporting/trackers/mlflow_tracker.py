"""Log a search to MLflow: a parent run, a child for each trial, the report, and the model.

By MLflow's client, not by Ray's callback, which knows no parent and takes a resumed trial for a new
one.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from search.console.commands import version
from search.reporting.trackers.base import FILES, TrackedSearch, TrackedTrial, Tracker, figures
from search.reporting.trackers.tracking_state import SentTrial, TrackingState
from search.runs.run_folder import MODEL
from search.runs.summary import RunSummary

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of MLflow about its own type hints
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ParamSchema, ParamSpec
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

EXPERIMENT = "classifier-search"
"""The experiment that runs belong to, unless MLFLOW_EXPERIMENT_NAME names another."""

_MAX_METRICS = 1000  # of one request
_MAX_PARAMS = 100
_STATUSES = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
_INTERRUPTED = "KILLED"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that is away is asked again later, instead of for minutes at once."""


class MlflowTracker(Tracker):
    """Logs to an MLflow server or store."""

    name = "MLflow"

    def __init__(self, uri: str | None) -> None:
        """Connect to nothing yet.

        Args:
            uri: The tracking URI; None: MLFLOW_TRACKING_URI, or MLflow's default.
        """
        self._uri = uri
        self._client: Any = None
        self._search: TrackedSearch | None = None
        self._state = TrackingState(Path())

    def begin(self, search: TrackedSearch) -> str:
        """Begin the parent run, or continue it."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it prints what it does
        uri = self._uri or mlflow.get_tracking_uri()
        self._client = MlflowClient(uri)
        self._search = search
        self._state = TrackingState.read(search.path / "mlflow.json")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        if not self._continues():
            self._state = TrackingState(self._state.path, self._create(experiment, search))
            self._state.write()
            self._log_params(self._state.key, search.settings)
        return f"run {search.name} of the experiment {experiment} at {uri}"

    def update(self, trial: TrackedTrial) -> None:
        """Log what a trial has more than its child run."""
        sent = self._state.trials.get(trial.number)
        if sent is None:
            sent = self._state.trials[trial.number] = SentTrial(self._create_child(trial))
            self._state.write()
            self._log_params(sent.key, trial.params)
        elif sent.state == _INTERRUPTED and not trial.has_ended:
            self._client.update_run(sent.key, status="RUNNING")
            sent.state = "running"
        new = [
            _metric(name, value, int(epoch["epoch"]))
            for epoch in trial.epochs[sent.epochs :]
            for name, value in epoch.items()
            if name != "epoch"
        ]
        if trial.has_ended and sent.state != trial.state:
            last = int(trial.epochs[-1]["epoch"]) if trial.epochs else 0
            new += [_metric(name, value, last) for name, value in trial.outcome.items()]
        for start in range(0, len(new), _MAX_METRICS):
            self._client.log_batch(sent.key, metrics=new[start : start + _MAX_METRICS])
        sent.epochs = len(trial.epochs)
        if trial.has_ended and sent.state != trial.state:
            self._client.set_tag(sent.key, "state", trial.state)
            if trial.reason:
                self._client.set_tag(sent.key, MLFLOW_RUN_NOTE, trial.reason)
            self._client.set_terminated(sent.key, status=_STATUSES[trial.state])
            sent.state = trial.state
        self._state.write()

    def end(self, summary: RunSummary | None) -> None:
        """Log the results, the report and the model; an interrupted search may be continued."""
        for sent in self._state.trials.values():
            if sent.state == "running":
                self._client.set_terminated(sent.key, status=_INTERRUPTED)
                sent.state = _INTERRUPTED
        self._state.write()
        if summary is None or self._search is None:
            self._client.set_terminated(self._state.key, status=_INTERRUPTED)
            return
        metrics = [_metric(name, value, 0) for name, value in figures(summary).items()]
        self._client.log_batch(self._state.key, metrics=metrics)
        for name in FILES:
            if (self._search.path / name).is_file():
                self._client.log_artifact(self._state.key, str(self._search.path / name))
        with TemporaryDirectory(prefix="search-mlflow-") as folder:
            write_mlflow_model(self._search.path / MODEL, Path(folder) / "model")
            self._client.log_artifacts(self._state.key, folder)
        self._client.set_terminated(self._state.key)

    def _continues(self) -> bool:
        """Return whether the parent run of an earlier session goes on; one may be deleted."""
        if not self._state.key:
            return False
        try:
            stage = self._client.get_run(self._state.key).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if stage != "active":
            return False
        self._client.update_run(self._state.key, status="RUNNING")
        return True

    def _create(self, experiment: str, search: TrackedSearch) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        tags = {MLFLOW_RUN_NAME: search.name, "run_id": search.run_id, "program": version()}
        tags["folder"] = str(search.path.absolute())
        return str(self._client.create_run(number, tags=tags).info.run_id)

    def _create_child(self, trial: TrackedTrial) -> str:
        parent = self._client.get_run(self._state.key).info
        tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, MLFLOW_RUN_NAME: trial.name}
        tags["trial"] = str(trial.number)
        return str(self._client.create_run(parent.experiment_id, tags=tags).info.run_id)

    def _log_params(self, key: str, params: Mapping[str, Any]) -> None:
        all_params = [Param(name, str(value)) for name, value in params.items()]
        for start in range(0, len(all_params), _MAX_PARAMS):
            self._client.log_batch(key, params=all_params[start : start + _MAX_PARAMS])


def write_mlflow_model(model: Path, folder: Path) -> None:
    """Write a model as MLflow loads it, with this package: see `search.deployment.mlflow_model`.

    Args:
        model: A run's `model.pt`.
        folder: The folder to write.
    """
    save_model(
        path=str(folder),
        loader_module="search.deployment.mlflow_model",
        data_path=str(model),
        pip_requirements=["classifier-search"],
        # Without it MLflow drops what is given.
        signature=ModelSignature(params=ParamSchema([ParamSpec("top", "long", 3)])),
    )


def _metric(name: str, value: float, step: int) -> Any:
    return Metric(name, float(value), int(time.time() * 1000), step)
