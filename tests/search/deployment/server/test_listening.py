"""Idle connections, slow headers and bodies that never come, against a server on 127.0.0.1."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from search.deployment.server import listening  # noqa: E402
from search.deployment.server.listening import Listening, max_connections  # noqa: E402
from search.deployment.server.middleware import Limits, create_middleware  # noqa: E402

SECONDS = 0.5
MOST = 20


async def read(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@contextmanager
def server(monkeypatch: pytest.MonkeyPatch, limits: Limits, seconds: float) -> Iterator[int]:
    monkeypatch.setattr(listening, "max_connections", lambda: MOST)
    routes = [Route("/healthz", read), Route("/predict", read, methods=["POST"])]
    app = Starlette(routes=routes, middleware=create_middleware(limits, None, ()))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with Listening(app, listener, seconds, 1.0):
            yield listener.getsockname()[1]


def health(port: int) -> int:
    status: int = httpx2.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code
    return status


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    try:
        return connection.recv(100) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "])
def test_connections_whose_headers_do_not_arrive_are_closed(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    with server(monkeypatch, Limits(), SECONDS) as port:
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(sent)
            until = time.monotonic() + 10
            while not is_closed(slow):
                assert time.monotonic() < until
                if sent:  # a byte now and then does not help
                    try:
                        slow.sendall(b"y")
                    except ConnectionError:
                        break
        assert health(port) == 200


def test_slow_headers_of_a_second_request_are_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        server(monkeypatch, Limits(), SECONDS) as port,
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /")  # ends uvicorn's own clock of idle connections
        until = time.monotonic() + 10
        while not is_closed(slow):
            assert time.monotonic() < until


@pytest.mark.parametrize("n", [MOST, 3 * MOST])
def test_idle_connections_keep_nobody_out(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    with server(monkeypatch, Limits(), 30.0) as port, ExitStack() as idle:
        opened = [
            idle.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(n)
        ]
        assert health(port) == 200
        time.sleep(0.2)
        closed = [is_closed(one) for one in opened[:3] + opened[-3:]]
        assert closed == [True] * 3 + [False] * 3, "the oldest make room"


def test_one_address_has_half_of_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(stack: ExitStack, port: int, address: str, n: int) -> list[socket.socket]:
        opened = (
            socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
            for _ in range(n)
        )
        return [stack.enter_context(one) for one in opened]

    with server(monkeypatch, Limits(), 30.0) as port, ExitStack() as stack:
        first = connect(stack, port, "127.0.0.2", MOST // 2)
        many = connect(stack, port, "127.0.0.3", MOST // 2 + 1)
        time.sleep(0.2)
        assert [is_closed(one) for one in (first[0], many[0], many[1])] == [False, True, False]
        connect(stack, port, "127.0.0.4", 1)
        time.sleep(0.2)
        assert [is_closed(one) for one in (*first[:2], many[1])] == [True, False, False]


def test_bodies_that_never_come_keep_neither_health_nor_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server(monkeypatch, Limits(requests=2), 30.0) as port, ExitStack() as stack:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"
        for _ in range(6):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.sendall(head)
        time.sleep(0.2)
        assert health(port) == 200
        answer: Any = httpx2.post(f"http://127.0.0.1:{port}/predict", content=b"four", timeout=5)
        assert (answer.status_code, answer.text) == (200, "4")


def test_the_most_connections_leave_descriptors_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, most in ((1024, 416), (64, 16), (10**6, 4096), (-1, 4096)):
        monkeypatch.setattr(
            listening.resource, "getrlimit", lambda _, allowed=allowed: (allowed, allowed)
        )
        assert max_connections() == most
