"""Metrics of the server for Prometheus: requests, latency, batch sizes, queue."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as render
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
_OTHER = "other"


class Metrics:
    """What is counted of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "classifier_requests",
            "Requests that were answered, by path and status.",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "classifier_request_seconds",
            "Seconds from a request's headers to the end of its answer, by path.",
            ("path",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.queue = Gauge(
            "classifier_requests_in_progress",
            "Requests that have arrived and are not answered yet.",
            registry=self._registry,
        )
        self.batch_images = Histogram(
            "classifier_batch_images",
            "Images in the batch that an image was predicted in, one observation for each image.",
            registry=self._registry,
            buckets=_IMAGES,
        )

    async def answer(self, request: Request) -> Response:
        """Return all metrics in Prometheus's text format."""
        return Response(render(self._registry), media_type=CONTENT_TYPE_LATEST)


class CountRequests:
    """Counts the requests of an application and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """Wrap an application.

        Args:
            app: The application.
            metrics: Where requests are counted.
            paths: Those that are counted by name; all others are "other", as anybody may send any.
        """
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        path = scope["path"] if scope["path"] in self._paths else _OTHER
        started = time.perf_counter()
        status = 499  # the client has gone

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.queue.inc()
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._metrics.queue.dec()
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
