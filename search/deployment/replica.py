"""Run the server: one replica by uvicorn in this process, several by Ray Serve.

Both run the application of `build_app`, so they answer alike. Serve's proxy adds an `X-Request-Id`
header, and itself answers 500 to a request whose own one is not UTF-8: it decodes the header before
it calls the application, and takes no middleware by a public option.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from search.deployment.app import build_app
from search.deployment.middleware import Limits
from search.deployment.predictor import load
from search.deployment.service import Service
from trainables.compute import configure_cpu

_GRACE_SECONDS = 5.0
"""Time to finish a request beyond its own limit."""
_UNLIMITED = 1_000_000
"""Requests that Serve may hand to a replica: `RequestLimits` refuses those that are too many."""
_NAME = "classifier"


@dataclass(frozen=True)
class ReplicaSettings:
    """Settings of one replica of the server.

    Attributes:
        model: A run's folder, or its `model.pt`.
        limits: Limits of requests.
        token: Token that requests need; None lets every client in.
        hosts: Names by which the server may be called; none allows all.
        batch_size: Images predicted in one batch, at most.
        threads: Threads of PyTorch.
    """

    model: Path
    limits: Limits
    token: str | None
    hosts: tuple[str, ...]
    batch_size: int
    threads: int


class Replica:
    """A loaded model and the application that serves it; what Ray Serve starts in a process."""

    def __init__(self, settings: ReplicaSettings) -> None:
        """Load the model.

        Raises:
            ModelError: there is no model, or it is damaged.
        """
        configure_cpu(settings.threads)
        self._settings = settings
        self._service = Service(load(settings.model), settings.limits.pixels, settings.batch_size)

    def app(self) -> ASGIApp:
        """Build the application."""
        settings = self._settings
        return build_app(self._service, settings.limits, settings.token, settings.hosts)

    __serve_build_asgi_app__ = app
    """What `ray.serve.ingress` calls."""


@contextmanager
def serve_in_process(
    app: ASGIApp, listener: socket.socket, seconds: float
) -> Iterator[Callable[[], bool]]:
    """Serve an application by uvicorn in a thread; in the end, finish the requests under way.

    Args:
        app: The application.
        listener: A bound socket.
        seconds: What a request may take.

    Yields:
        A function that returns whether the server still runs.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=math.ceil(seconds + _GRACE_SECONDS),
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if not server.started:
            raise RuntimeError("uvicorn did not start; its log says why")
        yield thread.is_alive
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serve_by_ray(
    settings: ReplicaSettings, n_replicas: int, host: str, port: int
) -> Iterator[None]:
    """Serve by replicas behind Ray Serve's proxy; in the end, finish the requests under way.

    Ray must have started.

    Args:
        settings: Settings of each replica.
        n_replicas: Processes that share the requests.
        host: Address to listen on.
        port: Port to listen on.
    """
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    seconds = settings.limits.seconds + _GRACE_SECONDS
    n_gpus = ray.cluster_resources().get("GPU", 0.0)
    options = deployment_options(settings.limits, n_replicas, n_gpus)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": seconds},
        logging_config=quiet,
    )
    deployment: Any = serve.deployment(**options)(serve.ingress()(Replica))
    serve.run(deployment.bind(settings), name=_NAME, route_prefix="/", logging_config=quiet)
    try:
        yield
    finally:
        delete_application(seconds + _GRACE_SECONDS)


def deployment_options(limits: Limits, n_replicas: int, n_gpus: float) -> dict[str, Any]:
    """Return the options of Serve's deployment; the replicas share the machine's GPUs."""
    return {
        "name": _NAME,
        "num_replicas": n_replicas,
        "max_ongoing_requests": _UNLIMITED,
        # No CPU is reserved: a machine with fewer CPUs than replicas is slow, but not stuck.
        "ray_actor_options": {"num_cpus": 0, "num_gpus": min(1.0, n_gpus / n_replicas)},
        "graceful_shutdown_timeout_s": limits.seconds + _GRACE_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.2,
    }


def delete_application(seconds: float) -> None:
    """Accept no more requests, and wait until those under way are answered."""
    from ray import serve

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(TimeoutError):  # `delete` waits for a minute at most; a request may be longer
            serve.delete(_NAME)
            return
