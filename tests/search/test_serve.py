"""The server's command line, and servers in processes of their own, on 127.0.0.1."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search.serve import ServeError, bind, is_loopback, main

pytest.importorskip("fastapi", reason="needs the extra: serve")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra: serve")
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
def test_other_machines_need_a_token(colour_run, capsys, host):
    assert refused(capsys, colour_run, "--host", host) == (
        f"error: --host {host} lets other machines in, which needs a --token (or CLASSIFIER_TOKEN"
        " in the environment); omit --host to serve this machine alone\n"
    )


@pytest.mark.parametrize("token", ["short", "with a blank, and long enough", "ü" * 20, "x" * 15])
def test_an_unusable_token(colour_run, capsys, token):
    assert "a token must have at least 16 characters" in refused(
        capsys, colour_run, "--token", token
    )


def test_a_missing_model(tmp_path, capsys):
    assert refused(capsys, tmp_path) == f"error: there is no model at {tmp_path}/model.pt\n"


def test_a_port_in_use(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServeError) as refusal:
            bind("127.0.0.1", port, seconds=0.0)
        assert str(refusal.value) == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use;"
            " give another --port or --host"
        )
        threading.Timer(0.3, other.close).start()
        with bind("127.0.0.1", port, seconds=10.0) as listener:  # a killed server frees it late
            assert listener.getsockname()[1] == port


def test_an_address_of_another_machine(colour_run, capsys):
    assert refused(capsys, colour_run, "--host", "192.0.2.1", "--token", TOKEN) == (
        "error: cannot listen on 192.0.2.1:8000: Cannot assign requested address;"
        " give another --port or --host\n"
    )


@pytest.mark.parametrize("option", ["--port", "--replicas", "--queue", "--timeout"])
def test_numbers_are_whole(colour_run, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        main([str(colour_run), option, "0"])
    assert stopped.value.code == 2
    assert f"argument {option}: must be a whole number >= 1" in capsys.readouterr().err


def test_a_port_that_does_not_exist(colour_run, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(colour_run), "--port", "70000"])
    assert caught.value.code == 2
    assert "must be a whole number >= 1 and <= 65535, but got '70000'" in capsys.readouterr().err


def test_a_server_that_stops_by_itself_ends_the_command(colour_run, capsys, monkeypatch):
    async def end(server: object) -> None:
        """Return at once, as the main loop never does of itself."""

    monkeypatch.setattr(uvicorn.Server, "main_loop", end)
    assert main([str(colour_run), "--port", str(free_port())]) == 1
    assert "error: the server stopped by itself" in capsys.readouterr().err


def test_addresses():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "host", ""))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("content", [b"no model", b"PK\x03\x04"])
def test_a_file_that_is_not_a_model(tmp_path, capsys, content, replicas):
    (tmp_path / "model.pt").write_bytes(content)
    arguments = tmp_path, "--port", free_port(), "--replicas", replicas
    (message,) = refused(capsys, *arguments).splitlines()
    assert message.startswith(f"error: {tmp_path}/model.pt cannot be read as a model: ")


def post(client: Any, image: bytes, **more: Any) -> Any:
    return client.post("/predict", files={"images": ("x.png", image)}, **more)


def answers(client: Any, image: bytes) -> list[tuple[int, object, dict[str, str]]]:
    """Send all kinds of requests; return each answer's status, body and headers."""
    sent = [
        post(client, image),
        post(client, b"no image"),
        post(client, bytes(2**21)),
        post(client, image, headers={"authorization": "Bearer wrong"}),
        client.post("/predict?top=0"),
        client.get("/classes"),
        client.get("/classes", headers={"host": "other.example"}),
        client.get("/healthz"),
        client.get("/nowhere"),
        client.get("/"),
    ]
    ignored = {"date", "x-request-id", "transfer-encoding", "content-length"}
    return [
        (one.status_code, one.text, {k: v for k, v in one.headers.items() if k not in ignored})
        for one in sent
    ]


@pytest.fixture(scope="module")
def image(colour_images: Path) -> bytes:
    return (colour_images / "blue" / "012.png").read_bytes()


@pytest.mark.long
def test_one_replica_and_several_answer_alike(colour_run, image):
    """Also: a killed server's port is free soon, and requests under way are answered at the end."""
    options = ("--max-megabytes", "1", "--timeout", "20")
    headers = {"authorization": f"Bearer {TOKEN}"}
    port = free_port()
    with serving(colour_run, port, *options, "--replicas", "2", CLASSIFIER_TOKEN=TOKEN) as several:
        with httpx2.Client(base_url=several.url, timeout=60, headers=headers) as client:
            by_ray = answers(client, image)
            with ThreadPoolExecutor(40) as pool:
                statuses = list(pool.map(lambda _: post(client, image).status_code, range(80)))
        assert set(statuses) == {200}
        assert _listens_on_loopback_alone(port)
        several.stop(signal.SIGKILL)
    with serving(colour_run, port, *options, CLASSIFIER_TOKEN=TOKEN) as one:
        with httpx2.Client(base_url=one.url, timeout=60, headers=headers) as client:
            assert answers(client, image) == by_ray
            odd = [("x-request-id", b"\xff"), ("authorization", f"Bearer {TOKEN}")]
            assert client.get("/classes", headers=odd).status_code == 200
        assert _listens_on_loopback_alone(port)
        _end_while_a_request_arrives(one, port, image)
    assert [status for status, *_ in by_ray] == [200, 422, 413, 401, 422, 200, 200, 200, 404, 200]


def _end_while_a_request_arrives(server: Server, port: int, image: bytes) -> None:
    """Hold that a request that is still arriving when the server is asked to end is answered."""
    with socket.create_connection(("127.0.0.1", port)) as slow:
        form = httpx2.Request("POST", server.url, files={"images": ("x.png", image)})
        body = form.read()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            f"Authorization: Bearer {TOKEN}\r\n"
            f"Content-Type: {form.headers['content-type']}\r\n\r\n"
        )
        slow.sendall(head.encode() + body[:100])
        time.sleep(0.5)
        server.process.terminate()
        time.sleep(0.5)
        slow.sendall(body[100:])
        slow.settimeout(60)
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
    out, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 0
    assert "INFO search.serve stopped after" in out.splitlines()[-1]
    assert "Traceback" not in out


def _listens_on_loopback_alone(port: int) -> bool:
    """Read Linux's table of listening sockets."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    mine = [address for address in local if int(address.split(":")[1], 16) == port]
    return bool(mine) and all(address.startswith("0100007F") for address in mine)
