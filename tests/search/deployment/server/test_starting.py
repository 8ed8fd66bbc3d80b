"""What the server answers before the model is loaded, and after."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra: serve")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra: dev")

from starlette.responses import PlainTextResponse  # noqa: E402

from search.deployment.server.middleware import Limits  # noqa: E402
from search.deployment.server.starting import Startup  # noqa: E402

TOKEN = "a-token-of-some-length"


def ask(app: Any, method: str, path: str, **more: Any) -> Any:
    async def send() -> Any:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    return asyncio.run(send())


def test_every_request_is_answered_with_503() -> None:
    startup = Startup(Limits(), None, ("localhost",))
    page = ask(startup, "GET", "/")
    assert page.status_code == 503
    assert "<h1>Starting</h1>" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert ask(startup, "GET", "/healthz").json() == {"status": "starting"}
    for method, path in (("POST", "/predict"), ("GET", "/classes"), ("GET", "/nowhere")):
        answer = ask(startup, method, path)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        assert answer.json() == {"detail": "the server is starting; try again soon"}
    assert ask(startup, "GET", "/page.css").status_code == 200
    assert ask(startup, "GET", "/", headers={"host": "evil.example"}).status_code == 400


def test_the_token_is_needed_from_the_beginning() -> None:
    startup = Startup(Limits(), TOKEN, ())
    assert ask(startup, "GET", "/classes").status_code == 401
    assert ask(startup, "GET", "/").status_code == 503


def test_requests_go_to_the_application_once_it_is_there() -> None:
    startup = Startup(Limits(), None, ())
    startup.become(PlainTextResponse("ready"))
    assert ask(startup, "GET", "/classes").text == "ready"
