"""Limits, tokens and headers in front of an application, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

from starlette.applications import Starlette  # noqa: E402
from starlette.routing import Mount  # noqa: E402

from search.deployment.server.middleware import Limits, RequestLimits, create_middleware  # noqa: E402


def ask(app: Any, method: str, path: str, **more: Any) -> Any:
    async def send() -> Any:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    return asyncio.run(send())


def stall(release: asyncio.Event | None, read_body: bool = True) -> Any:
    """Make an application that answers once `release` is set, or never."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while read_body and (await receive()).get("more_body"):
            pass
        if release is None:
            await asyncio.sleep(3600)
        else:
            await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


def test_more_requests_than_the_limit_get_429():
    async def send() -> list[Any]:
        release = asyncio.Event()
        app = RequestLimits(stall(release), Limits(requests=3))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            tasks = [asyncio.create_task(client.post("/predict")) for _ in range(5)]
            done, _ = await asyncio.wait(tasks, timeout=1.0)
            assert len(done) == 2
            release.set()
            answers = await asyncio.gather(*tasks)
            return [*answers, await client.post("/predict")]

    answers = asyncio.run(send())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {"detail": "3 requests are being worked on; try again soon"}


def test_a_request_that_takes_too_long():
    answer = ask(RequestLimits(stall(None), Limits(seconds=0.05)), "GET", "/")
    assert answer.status_code == 429
    assert answer.json() == {"detail": "too busy to answer within 0.05 s; try again soon"}


def test_a_body_that_never_ends_arriving():
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(3600)
        yield b"y"

    app = RequestLimits(stall(None), Limits(seconds=0.05))
    answer = ask(app, "POST", "/predict", content=body())
    assert answer.status_code == 408
    assert answer.json() == {"detail": "a request must arrive within 0.05 s"}


def test_an_internal_error_is_logged_and_not_sent_to_the_client(caplog):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("/secret/path")

    app = Starlette(routes=[Mount("/", broken)], middleware=create_middleware(Limits(), None, ()))
    answer = ask(app, "GET", "/")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the server failed; its log says why"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "/secret/path" in caplog.text


def test_refused_requests_are_logged_in_one_line(caplog):
    app = Starlette(middleware=create_middleware(Limits(), "a-token-of-some-length", ()))
    assert ask(app, "GET", "/classes%0A%1B[31m").status_code == 401
    (record,) = caplog.records
    assert record.getMessage() == "GET '/classes\\n\\x1b[31m': 401"
