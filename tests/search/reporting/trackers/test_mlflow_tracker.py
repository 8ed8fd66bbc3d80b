"""A search in MLflow: in its SQLite store, and on a real server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", reason="MLflow is not installed: pip install '.[mlflow]'")

from search.reporting.trackers.mlflow_tracker import (  # before MLflow, whose warnings it hides
    EXPERIMENT,
    MlflowTracker,
    write_mlflow_model,
)

import mlflow.pyfunc  # isort: skip
from mlflow import MlflowClient  # isort: skip

from tests.fixtures.tracked_search import SUMMARY, HandDrivenSearch, four_trials

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # artefacts of a store lie in mlruns/
    return f"sqlite:///{tmp_path}/mlflow.db"


def follow(search: HandDrivenSearch, uri: str) -> MlflowTracker:
    tracker = MlflowTracker(uri)
    tracker.begin(search.tracked)
    for trial in search.tracked.begun_trials():
        tracker.update(search.tracked.trial(trial.number))
    return tracker


def runs(uri: str) -> tuple[Any, dict[str, Any]]:
    """Return the only parent run, and its children by name."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, {run.info.run_name: run for run in children}


def check_session_and_resume(tmp_path: Path, uri: str, model: Path) -> None:
    search = HandDrivenSearch(tmp_path / "run")
    four_trials(search)
    follow(search, uri).end(None)
    parent, trials = runs(uri)
    assert (parent.info.run_name, parent.info.status) == ("run", "KILLED")
    assert parent.data.params == {"seed": "0", "constants.mixup": "0.0"}
    statuses = {name: (run.info.status, run.data.tags.get("state")) for name, run in trials.items()}
    assert statuses == {
        "0000": ("FINISHED", "complete"),
        "0001": ("FINISHED", "pruned"),
        "0002": ("FAILED", "failed"),
        "0003": ("KILLED", None),
    }
    assert float(trials["0000"].data.params["lr"]) == search.study.trials[0].params["lr"]
    assert trials["0000"].data.metrics["best_val_accuracy"] == 0.8
    resumed = HandDrivenSearch(tmp_path / "run")
    resumed.epoch(3, 3, 0.9)
    resumed.end(3, "complete", 0.9)
    (tmp_path / "run" / "report.html").write_text("<p>", encoding="utf-8")
    shutil.copy(model, tmp_path / "run")
    follow(resumed, uri).end(SUMMARY)
    again, trials = runs(uri)
    assert again.info.run_id == parent.info.run_id
    assert (again.info.status, trials["0003"].info.status) == ("FINISHED", "FINISHED")
    client = MlflowClient(uri)
    history = client.get_metric_history(trials["0003"].info.run_id, "val_accuracy")
    assert [(one.step, one.value) for one in history] == [(1, 0.6), (2, 0.7), (3, 0.9)]
    assert again.data.metrics["test_accuracy"] == 0.95
    paths = {one.path for one in client.list_artifacts(again.info.run_id)}
    assert {"report.html", "model"} <= paths


def test_a_store_has_every_trial_and_a_resumed_run_goes_on(
    tmp_path: Path, store: str, colour_run: Path
) -> None:
    check_session_and_resume(tmp_path, store, colour_run / "model.pt")
    assert MlflowTracker(store).begin(HandDrivenSearch(tmp_path / "run").tracked).endswith(store)


def test_a_deleted_run_is_begun_again(tmp_path: Path, store: str) -> None:
    search = HandDrivenSearch(tmp_path / "run")
    four_trials(search)
    follow(search, store).end(None)
    MlflowClient(store).delete_run(runs(store)[0].info.run_id)
    follow(search, store).end(None)
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id])
    assert len([run for run in found if run.info.run_name == "run"]) == 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Run MLflow's server on this machine."""
    if find_spec("flask_cors") is None:
        pytest.skip("MLflow's server needs Flask, flask-cors and graphene, which are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "mlflow", "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **quiet) as process:
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, "it ended"
                    time.sleep(0.25)
            yield address
        finally:
            process.terminate()


@pytest.mark.long
def test_a_server_has_every_trial_and_a_resumed_run_goes_on(
    tmp_path: Path, server: str, colour_run: Path
) -> None:
    check_session_and_resume(tmp_path, server, colour_run / "model.pt")


def test_a_server_that_is_away_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(mlflow.exceptions.MlflowException, match="refused"):
        follow(HandDrivenSearch(tmp_path / "run"), "http://127.0.0.1:9")


def test_mlflow_loads_the_model_and_predicts_files_bytes_and_base64(
    tmp_path: Path, colour_run: Path, colour_images: Path
) -> None:
    write_mlflow_model(colour_run / "model.pt", tmp_path / "mlflow")
    model = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    image = next(colour_images.rglob("*.png"))
    content = image.read_bytes()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    given = [str(image), content, base64.b64encode(content).decode(), str(broken)]
    found = model.predict(pd.DataFrame({"image": given}))
    assert set(found["prediction_1"][:3]) == {image.parent.name}
    assert found["error"][:3].isna().all()
    assert "zero bytes" in found["error"][3]
    assert found["prediction_1"][3] is None, "NaN would be no JSON"
    top = model.predict(pd.DataFrame({"image": given[:1]}), params={"top": 1})
    assert "prediction_2" not in top


@pytest.mark.long
def test_mlflow_serves_the_model(tmp_path: Path, colour_run: Path, colour_images: Path) -> None:
    write_mlflow_model(colour_run / "model.pt", tmp_path / "mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["models", "serve", "--model-uri", str(tmp_path / "mlflow"), "--env-manager", "local"]
    scripts = Path(sys.executable).parent  # where MLflow finds uvicorn
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", port],
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        cwd=Path(__file__).parents[4],
        start_new_session=True,
    )
    try:
        image = next(colour_images.rglob("*.png"))
        inputs = [base64.b64encode(image.read_bytes()).decode(), str(tmp_path / "missing.png")]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": inputs, "params": {"top": 1}}).encode(),
            {"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    content = answer.read().decode()
                break
            except urllib.error.URLError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    first, second = json.loads(content, parse_constant=pytest.fail)["predictions"]
    assert (first["prediction_1"], first["error"]) == (image.parent.name, None)
    assert (second["prediction_1"], second["error"]) == (None, "there is no such file")
