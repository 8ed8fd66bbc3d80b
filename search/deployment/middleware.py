"""What a server lets in: an ASGI layer around the whole application.

It stands before any reading: a request that breaks a limit costs next to nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = ("/predict", "/classes")
"""Paths that ask for the token, where there is one. The rest tells nothing of the model."""

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        b" img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take.

    Attributes:
        body_bytes: Of a request's body.
        pixels: Of an image.
        images: Of a request.
        seconds: From a request's first byte to its answer.
        requests: That a replica works on at a time; one more is told to come back.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    images: int = 32
    seconds: float = 30.0
    requests: int = 256


class RequestError(HTTPException):
    """A request that is not carried out: its status, and why in one line.

    One that comes up while the application reads a body passes through the application's own
    handling, which tells it to the client; so it is of a kind that is handled.
    """


class RequestLimits:
    """Holds the limits, asks for the token, and lets no error out as it is."""

    def __init__(
        self, app: App, limits: Limits, token: str | None = None, hosts: tuple[str, ...] = ()
    ) -> None:
        """Stand before an application.

        Args:
            app: The application.
            limits: What is let in.
            token: That `GUARDED` paths ask for; None lets everyone in.
            hosts: Names by which the server may be called; none allows all. A page from elsewhere
                that has its own name point to this machine is kept out by it.
        """
        self._app = app
        self._limits = limits
        self._token = token
        self._hosts = hosts
        self._n_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except RequestError as refusal:
            await answer.refuse(refusal)
        except Exception:  # what it was is for the log alone
            _log.exception("a request failed")
            await answer.refuse(RequestError(500, "the server failed; its log says why"))

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._check(scope["path"], headers)
        if self._n_requests >= self._limits.requests:
            raise RequestError(
                429, f"{self._n_requests} requests are being worked on; come back soon"
            )
        body = _Body(receive, self._limits.body_bytes)
        self._n_requests += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, body.receive, answer.send)
        except TimeoutError:
            limit = f"{self._limits.seconds:g} s"
            if body.complete:
                raise RequestError(
                    429, f"too busy to answer within {limit}; come back soon"
                ) from None
            raise RequestError(408, f"a request must arrive within {limit}") from None
        finally:
            self._n_requests -= 1

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Refuse what its headers show to be refused."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts and _without_port(host) not in self._hosts:
            raise RequestError(421, "this server is not called by that name")
        if self._token is not None and path.rstrip("/") in GUARDED:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self._token.encode())
            if kind.lower() != b"bearer" or not right:
                raise RequestError(401, "this needs the header Authorization: Bearer TOKEN")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._limits.body_bytes:
            raise RequestError(413, _too_large(self._limits.body_bytes))


class HeaderCheck:
    """Refuses what Serve would fail on: it reads headers as UTF-8, before `RequestLimits`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if all(_is_text(value) for _, value in scope.get("headers", ())):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _Answer(send).refuse(RequestError(400, "a header's value is not UTF-8"))
        else:
            await send({"type": "websocket.close", "code": 1008})


def before_serve() -> list[Middleware]:
    """Return what Serve is to have requests pass first; it calls this where it listens."""
    return [Middleware(HeaderCheck)]


class _Body:
    """A request's body, counted as it is read."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._n_bytes = 0
        self.complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._n_bytes > self._most:
                raise RequestError(413, _too_large(self._most))
        return message


class _Answer:
    """A response, with the headers that every one has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await self._send(message)

    async def refuse(self, refusal: RequestError) -> None:
        """Answer with a refusal, unless an answer has begun."""
        if self._started:
            return
        body = json.dumps({"detail": refusal.detail}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if refusal.status_code == 429:
            headers.append((b"retry-after", b"1"))
        if refusal.status_code == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send(
            {"type": "http.response.start", "status": refusal.status_code, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})


def _is_text(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _without_port(host: str) -> str:
    """Return the name of a Host header: "localhost:8000" and "[::1]:8000" without their port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _too_large(most: int) -> str:
    return f"a request's body may have at most {most:,} bytes"
