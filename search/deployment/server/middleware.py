"""ASGI middleware of the server: response headers, host and token checks, request limits.

A request that breaks a rule is refused before its body is read, at next to no cost. The checks of
the Host header and the token are Starlette's; the order is that of `create_middleware`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PUBLIC_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/page.css", "/page.js"})
"""Paths that need no token: they reveal nothing of the model. All others do, new ones too."""

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_WITHOUT_BODY = ("GET", "HEAD")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all requests together.

    Attributes:
        body_bytes: Bytes of a request's body.
        pixels: Pixels of an image.
        images: Images in a request.
        seconds: Seconds from the end of a request's headers to the end of its answer, and for the
            headers themselves.
        requests: Requests that have arrived and are worked on in parallel; the next one gets 429.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    images: int = 32
    seconds: float = 30.0
    requests: int = 256


def create_middleware(
    limits: Limits, token: str | None, hosts: tuple[str, ...]
) -> list[Middleware]:
    """Return the middleware of the server, the outermost first.

    Args:
        limits: Limits of requests.
        token: Token that all but `PUBLIC_PATHS` need; None lets every client in.
        hosts: Accepted names in the Host header; none accepts all. They keep out a web page that
            points a name of its own to this machine (DNS rebinding).
    """
    layers = [Middleware(SecurityHeaders)]
    if hosts:
        layers.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False))
    if token is not None:
        layers.append(
            Middleware(AuthenticationMiddleware, backend=TokenBackend(token), on_error=_answer_401)
        )
    return [*layers, Middleware(RequestLimits, limits=limits)]


class SecurityHeaders:
    """Adds security headers to every response, and logs the refused requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
                if message["status"] >= 400:
                    # `%r`: a path may hold line breaks.
                    _log.warning("%s %r: %d", scope["method"], scope["path"], message["status"])
            await send(message)

        await self._app(scope, receive, send_with_headers)


class TokenBackend(AuthenticationBackend):
    """Checks the bearer token of every request for anything but `PUBLIC_PATHS`."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the credentials of a request; None where it needs none.

        Raises:
            AuthenticationError: the token is missing or wrong.
        """
        # Not `conn.url`: that is built from the Host header, which the client chooses.
        if conn.scope["path"] in PUBLIC_PATHS:
            return None
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise AuthenticationError("this needs the header Authorization: Bearer TOKEN")
        return AuthCredentials(["authenticated"]), SimpleUser("client")


def _answer_401(conn: HTTPConnection, error: AuthenticationError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 401, {"www-authenticate": "Bearer"})


class RequestLimits:
    """Enforces the limits, and answers an internal error without its details.

    A request that exceeds one raises an HTTPException: where that is raised while the application
    reads the body, the application answers with it.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._n_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._handle(scope, receive, send_and_note)
        except ClientDisconnect:
            return
        except HTTPException as error:
            failure = error
        except Exception:  # its text may name files: it is for the log alone
            _log.exception("%s %r failed", scope["method"], scope["path"])
            failure = HTTPException(500, "the server failed; its log says why")
        else:
            return
        if not started:
            answer = JSONResponse({"detail": failure.detail}, failure.status_code, failure.headers)
            await answer(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._limits.body_bytes:
            raise _body_too_large(self._limits)
        if scope["method"] not in _WITHOUT_BODY:
            self._check_queue()  # before a body is sent in vain
        body = _Body(receive, self._limits, self._enter_queue)
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, body.receive, send)
        except TimeoutError:
            limit = f"{self._limits.seconds:g} s"
            if body.complete:
                raise _busy(f"too busy to answer within {limit}") from None
            raise HTTPException(408, f"a request must arrive within {limit}") from None
        finally:
            self._n_requests -= body.is_queued

    def _check_queue(self) -> None:
        if self._n_requests >= self._limits.requests:
            raise _busy(f"{self._n_requests} requests are being worked on")

    def _enter_queue(self) -> None:
        self._check_queue()
        self._n_requests += 1


class _Body:
    """Counts the bytes of a request's body while it is read, and queues it once it is complete.

    Bodies that do not arrive are bounded by their connections, and keep nobody else waiting.
    """

    def __init__(self, receive: Receive, limits: Limits, enter_queue: Callable[[], None]) -> None:
        self._receive = receive
        self._limits = limits
        self._enter_queue = enter_queue
        self._n_bytes = 0
        self.is_queued = False
        self.complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._n_bytes > self._limits.body_bytes:
                raise _body_too_large(self._limits)
            if self.complete and not self.is_queued:
                self._enter_queue()
                self.is_queued = True
        return message


def _body_too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"a request's body may have at most {limits.body_bytes:,} bytes")


def _busy(reason: str) -> HTTPException:
    return HTTPException(429, f"{reason}; try again soon", headers={"retry-after": "1"})
