"""The server's command line, and a server that really runs: on 127.0.0.1, behind Ray Serve."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from search.serve import _delete, is_loopback, listens_itself, main, wait_for_port

pytest.importorskip("fastapi", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-some-length"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server in a process of its own."""

    def __init__(self, run: Path, port: int, *options: str, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "search.serve", str(run), "--port", str(port), *options]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready: "):
                assert self.url in line
                return
        raise AssertionError(f"the server ended with {self.process.wait()}")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=120)
        return self.process.returncode, out


@contextmanager
def serving(run: Path, port: int, *options: str, **environment: str) -> Iterator[Server]:
    server = Server(run, port, *options, **environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLASSIFIER_TOKEN", raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_let_in_with_a_token_alone(colour_run, capsys, host):
    assert refused(capsys, colour_run, "--host", host) == (
        f"error: --host {host} lets other machines in, which needs a --token (or CLASSIFIER_TOKEN"
        " in the environment); leave --host out to serve this machine alone\n"
    )


@pytest.mark.parametrize("token", ["short", "with a blank, and long enough", "ü" * 20, "x" * 15])
def test_a_token_that_is_none(colour_run, capsys, token):
    assert "a token must have at least 16 characters" in refused(
        capsys, colour_run, "--token", token
    )


@pytest.mark.parametrize(
    ("host", "replicas", "itself"),
    [("127.0.0.1", 1, True), ("::1", 1, True), ("127.0.0.1", 2, False), ("0.0.0.0", 1, False)],
)
def test_one_replica_on_this_machine_listens_itself(host, replicas, itself):
    assert listens_itself(argparse.Namespace(host=host, replicas=replicas)) is itself


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert refused(capsys, tmp_path) == f"error: there is no model at {tmp_path}/model.pt\n"


def test_a_port_that_is_taken(colour_run, capsys, monkeypatch):
    monkeypatch.setattr("search.serve._PORT_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("search.serve.wait_for_port", lambda h, p: wait_for_port(h, p, 0.0))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refused(capsys, colour_run, "--port", port) == (
            f"error: cannot listen on 127.0.0.1:{port}: Address already in use;"
            " give another --port or --host\n"
        )
        threading.Timer(0.3, other.close).start()
        wait_for_port("127.0.0.1", port, 10.0)  # a server that was killed takes a moment to end


@pytest.mark.parametrize("option", ["--port", "--replicas", "--queue", "--timeout"])
def test_numbers_are_whole(colour_run, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        main([str(colour_run), option, "0"])
    assert stopped.value.code == 2
    assert f"argument {option}: must be a whole number >= 1" in capsys.readouterr().err


def test_addresses():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "host", ""))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Ray Serve imports
@pytest.mark.parametrize(
    ("n_replicas", "n_gpus", "share"), [(1, 0, 0), (1, 1, 1), (4, 2, 0.5), (2, 8, 1)]
)
def test_replicas_share_the_gpus(colour_run, n_replicas, n_gpus, share):
    from search.deployment.middleware import Limits
    from search.deployment.replica import Setup, create_application

    setup = Setup(colour_run, Limits(), None, (), batch_size=8, threads=1)
    deployment = create_application(setup, n_replicas, n_gpus)._bound_deployment
    assert deployment.num_replicas == n_replicas
    assert deployment.ray_actor_options == {"num_cpus": 0, "num_gpus": share}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Ray Serve imports
def test_a_stop_waits_for_the_longest_request(monkeypatch):
    asked = []

    def delete(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise TimeoutError("not deleted after 60s")

    monkeypatch.setattr("ray.serve.delete", delete)
    _delete(120.0)
    assert asked == ["classifier"] * 2


@pytest.mark.parametrize("content", [b"no model", b"PK\x03\x04"])
def test_a_file_that_is_no_model_ends_it(tmp_path, capsys, monkeypatch, content):
    """It is read while Ray starts, which here it does not."""
    monkeypatch.setattr("search.cluster.session.ray_session", lambda address: nullcontext())
    (tmp_path / "model.pt").write_bytes(content)
    (message,) = refused(capsys, tmp_path, "--port", free_port()).splitlines()
    assert message.startswith(f"error: {tmp_path}/model.pt cannot be read as a model: ")


@pytest.mark.slow
def test_a_server_from_start_to_end(colour_run, colour_images):
    """Answers, refuses, is killed, starts again at once, and ends in good order.

    First two replicas behind Serve's proxy, then one that listens itself.
    """
    port = free_port()
    image = ("x.png", (colour_images / "blue" / "012.png").read_bytes())
    headers = {"authorization": f"Bearer {TOKEN}"}

    def post(client: Any, **more: Any) -> Any:
        return client.post("/predict", files={"images": image}, headers=headers, **more)

    unreadable = {"headers": [(b"x-request-id", b"\xff")]}
    options = ("--max-megabytes", "1", "--timeout", "20", "--replicas", "2")
    with serving(colour_run, port, *options, CLASSIFIER_TOKEN=TOKEN) as server:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            made = post(client).json()["predictions"][0]["classes"][0]
            assert made["class"] == "blue"
            assert client.post("/predict", files={"images": image}).status_code == 401
            large = {"images": ("x.png", bytes(2**21))}
            assert client.post("/predict", files=large, headers=headers).status_code == 413
            assert client.get("/healthz").json() == {"status": "ready"}
            assert client.get("/healthz", **unreadable).status_code == 400
            with ThreadPoolExecutor(40) as pool:
                statuses = list(pool.map(lambda _: post(client).status_code, range(80)))
            assert set(statuses) == {200}
        assert _listens_on_loopback_alone(port)
        server.stop(signal.SIGKILL)
        with serving(colour_run, port, "--timeout", "20") as again:
            assert httpx2.get(f"{again.url}/healthz", timeout=60).status_code == 200
            assert httpx2.get(f"{again.url}/healthz", timeout=60, **unreadable).status_code == 400
            assert _listens_on_loopback_alone(port)
            # A request that is still arriving when the server is asked to end is answered.
            with socket.create_connection(("127.0.0.1", port)) as slow:
                form = httpx2.Request("POST", again.url, files={"images": image})
                body = form.read()
                head = (
                    f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                    f"Content-Type: {form.headers['content-type']}\r\n\r\n"
                )
                slow.sendall(head.encode() + body[:100])
                time.sleep(0.5)
                again.process.terminate()
                time.sleep(0.5)
                slow.sendall(body[100:])
                slow.settimeout(60)
                assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
            out, _ = again.process.communicate(timeout=120)
            assert again.process.returncode == 0
            assert out.endswith("stopped\n")
            assert "Traceback" not in out


def _listens_on_loopback_alone(port: int) -> bool:
    """Read Linux's table of listening sockets."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    mine = [address for address in local if int(address.split(":")[1], 16) == port]
    return bool(mine) and all(address.startswith("0100007F") for address in mine)
