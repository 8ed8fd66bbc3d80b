"""Listen for HTTP by uvicorn, in a thread of this process, with bounds of connections.

Too many connections, and those whose headers do not arrive, are closed, oldest first, while no
request of theirs is answered: who opens many and sends nothing keeps out nobody else.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import resource
import socket
import time
from collections.abc import Iterable
from threading import Thread
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

_RESERVED_FILES = 192
"""Descriptors that are not for connections: of the program, and of uploaded files on disk."""
_MAX_CONNECTIONS = 4096


def max_connections() -> int:
    """Return how many connections may be open, by the process's limit of open files."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    # A request may have its upload on disk, which takes a second descriptor.
    return max(16, min(_MAX_CONNECTIONS, (allowed - _RESERVED_FILES) // 2))


def limited_protocol(seconds: float, most: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with bounds.

    Args:
        seconds: Time for a request's headers to arrive, from the connection or the last answer on;
            at most twice as much for the second request of a connection.
        most: Connections, of which one address may have half.
    """
    numbers = itertools.count()

    class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """One connection. `connections`, `cycle` and `client` are what uvicorn's own code uses."""

        def connection_made(self, transport: Any) -> None:
            """Close the oldest connection that waits where there are too many."""
            super().connection_made(transport)
            self._timer = self.loop.call_later(seconds, self._check)
            self._last_cycle: object = None
            self.number = next(numbers)
            # Those that are aborted leave `connections` a moment later.
            open_ones = [one for one in self.connections if not one.transport.is_closing()]
            others = [one for one in open_ones if one is not self]
            same = [one for one in others if one.address() == self.address()]
            if len(same) + 1 > most // 2:
                _make_room(same, self)
            elif len(others) + 1 > most:
                _make_room(others, self)

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the connection."""
            self._timer.cancel()
            super().connection_lost(exc)

        def address(self) -> str:
            """Return the client's address."""
            return self.client[0] if self.client else ""

        def is_waiting(self) -> bool:
            """Return whether no request of this connection is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _check(self) -> None:
            """Close the connection where no request has begun since the last time."""
            if self.is_waiting() and self.cycle is self._last_cycle:
                self.transport.abort()  # `close` would wait for a client that reads nothing
                return
            self._last_cycle = self.cycle
            self._timer = self.loop.call_later(seconds, self._check)

    def _make_room(connections: Iterable[LimitedProtocol], newest: LimitedProtocol) -> None:
        waiting = [one for one in connections if one.is_waiting()]
        oldest = min(waiting, key=lambda one: one.number, default=newest)
        oldest.transport.abort()

    return LimitedProtocol


class Listening:
    """Listens within a `with` block; in the end it finishes the requests under way."""

    def __init__(
        self, app: ASGIApp, listener: socket.socket, seconds: float, drain_seconds: float
    ) -> None:
        """Listen to nobody yet.

        Args:
            app: The application.
            listener: A bound socket.
            seconds: Time for the headers of a request to arrive.
            drain_seconds: Time for the requests under way in the end.
        """
        config = uvicorn.Config(
            app,
            http=limited_protocol(seconds, max_connections()),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=math.ceil(drain_seconds),
        )
        self._server = uvicorn.Server(config)
        self._thread = Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="uvicorn"
        )

    def __enter__(self) -> Listening:
        """Start.

        Raises:
            RuntimeError: uvicorn could not.
        """
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self._server.started:
            raise RuntimeError("uvicorn did not start; its log says why")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def is_running(self) -> bool:
        """Return whether it still listens."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Accept no more requests, and wait until those under way are answered."""
        self._server.should_exit = True
        self._thread.join()
