"""A Ray of this machine with more logical CPUs than it has, for trials that need none."""

from __future__ import annotations

import logging

import search.cluster.session  # noqa: F401  # sets what quiets Ray, before Ray is imported

import ray  # isort: skip


def start_ray(n_cpus: int, object_store_bytes: int) -> None:
    """Start Ray as `search.cluster.session.ray_session` does, but for these two.

    Args:
        n_cpus: Logical CPUs.
        object_store_bytes: What the object store may take.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=n_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=object_store_bytes,
        # Tune starts its actors in this environment: with it, workers that wait are taken.
        runtime_env={"env_vars": {"PL_DISABLE_FORK": "1"}},
    )
