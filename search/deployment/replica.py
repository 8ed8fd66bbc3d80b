"""One replica of the server: a model in a process of its own, behind Ray Serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve

from search.deployment.app import build_app
from search.deployment.middleware import App, Limits
from search.deployment.predictor import load
from search.deployment.service import Service
from trainables.compute import compute_with

_BEYOND_ANY = 1_000_000
"""Requests that Serve may hand to a replica: its own `RequestLimits` says when it is enough."""


@dataclass(frozen=True)
class Setup:
    """All that a replica needs to begin.

    Attributes:
        model: A run's folder, or its `model.pt`.
        limits: What is let in.
        token: That predictions ask for, or None.
        hosts: Names by which the server may be called; none allows all.
        batch_size: Images that are computed together.
        threads: Of PyTorch.
    """

    model: Path
    limits: Limits
    token: str | None
    hosts: tuple[str, ...]
    batch_size: int
    threads: int


class Replica:
    """Loads the model and answers requests."""

    def __init__(self, setup: Setup) -> None:
        compute_with(setup.threads)
        self._setup = setup
        self._service = Service(load(setup.model), setup.limits.pixels, setup.batch_size)

    def __serve_build_asgi_app__(self) -> App:
        """Build what answers."""
        setup = self._setup
        return build_app(self._service, setup.limits, setup.token, setup.hosts)


def create_application(setup: Setup, n_replicas: int, n_gpus: float) -> serve.Application:
    """Describe the server to Ray Serve.

    Args:
        setup: Of each replica.
        n_replicas: How many share the requests.
        n_gpus: Of this machine; the replicas share them.
    """
    deployment: Any = serve.deployment(
        name="classifier",
        num_replicas=n_replicas,
        max_ongoing_requests=_BEYOND_ANY,
        # No CPU is reserved: a machine with fewer CPUs than replicas is slow, not stuck.
        ray_actor_options={"num_cpus": 0, "num_gpus": min(1.0, n_gpus / n_replicas)},
        graceful_shutdown_timeout_s=setup.limits.seconds + 5,
        graceful_shutdown_wait_loop_s=0.2,
    )(serve.ingress()(Replica))
    application: serve.Application = deployment.bind(setup)
    return application
