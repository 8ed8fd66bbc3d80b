"""Several processes that predict, as replicas of Ray Serve.

This process listens and hands images on to them, so that several replicas have the same interface
and limits as one: Serve's own proxy, which has routes and headers of its own, does not run.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from search.deployment.predictor import load
from search.deployment.server.budget import Budget
from search.deployment.server.service import Answer, LocalService
from trainables.compute import configure_cpu
from trainables.images import ImageError
from trainables.models.model_card import ModelCard

_UNLIMITED = 1_000_000
"""Images that Serve may hand to a replica: `RequestLimits` refuses requests that are too many."""
_BYTES_ON_THE_WAY = 256 * 2**20
"""Bytes of files that are on the way to replicas at the same time."""
_NAME = "classifier"


@dataclass(frozen=True)
class ReplicaSettings:
    """Settings of one replica.

    Attributes:
        model: A run's folder, or its `model.pt`.
        pixels: Pixels of an image, at most.
        batch_size: Images predicted in one batch, at most.
        threads: Threads of PyTorch.
    """

    model: Path
    pixels: int
    batch_size: int
    threads: int


def load_service(settings: ReplicaSettings) -> LocalService:
    """Load the model in this process.

    Raises:
        ModelError: there is no model, or it is damaged.
    """
    configure_cpu(settings.threads)
    return LocalService(load(settings.model), settings.pixels, settings.batch_size)


class Replica:
    """A process with the model; what Ray Serve starts."""

    def __init__(self, settings: ReplicaSettings) -> None:
        """Load the model."""
        self._service = load_service(settings)

    async def answer(self, content: bytes, grad_cam: bool) -> Answer | ImageError:
        """Predict an image file; an error of the image is returned, as Ray logs raised ones."""
        try:
            return await self._service.answer(io.BytesIO(content), grad_cam)
        except ImageError as error:
            return error


class RemoteService:
    """Predicts by replicas."""

    def __init__(self, card: ModelCard, handle: Any) -> None:
        """Use a deployment.

        Args:
            card: The model's card.
            handle: Serve's handle of the deployment of `Replica`.
        """
        self._card = card
        self._handle = handle
        self._bytes = Budget(_BYTES_ON_THE_WAY)

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self._card

    async def answer(self, file: IO[bytes], grad_cam: bool) -> Answer:
        """See `search.deployment.server.service.Service`."""
        async with self._bytes.taking(file.seek(0, io.SEEK_END)):
            file.seek(0)
            content = await asyncio.to_thread(file.read)
            result = await self._handle.answer.remote(content, grad_cam)
        if isinstance(result, ImageError):
            raise result
        assert isinstance(result, Answer)
        return result


@contextmanager
def running_replicas(
    settings: ReplicaSettings, card: ModelCard, n_replicas: int, drain_seconds: float
) -> Iterator[RemoteService]:
    """Start replicas; in the end, finish what they compute.

    Ray must have started.

    Args:
        settings: Settings of each replica.
        card: The model's card.
        n_replicas: Processes that share the images.
        drain_seconds: Time for what is computed in the end.
    """
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    options = deployment_options(n_replicas, ray.cluster_resources().get("GPU", 0.0), drain_seconds)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment: Any = serve.deployment(**options)(Replica)
    application = deployment.bind(settings)
    handle = serve.run(application, name=_NAME, route_prefix=None, logging_config=quiet)
    try:
        yield RemoteService(card, handle)
    finally:
        delete_application(drain_seconds)


def deployment_options(n_replicas: int, n_gpus: float, drain_seconds: float) -> dict[str, Any]:
    """Return the options of Serve's deployment; the replicas share the machine's GPUs."""
    return {
        "name": _NAME,
        "num_replicas": n_replicas,
        "max_ongoing_requests": _UNLIMITED,
        # No CPU is reserved: a machine with fewer CPUs than replicas is slow, but not stuck.
        "ray_actor_options": {"num_cpus": 0, "num_gpus": min(1.0, n_gpus / n_replicas)},
        "graceful_shutdown_timeout_s": drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.2,
    }


def delete_application(seconds: float) -> None:
    """End the replicas once they have answered what they compute."""
    from ray import serve

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(TimeoutError):  # `delete` waits for a minute at most; a request may be longer
            serve.delete(_NAME)
            return
