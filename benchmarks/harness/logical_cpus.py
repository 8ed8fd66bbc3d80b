"""Start Ray with more logical CPUs than the machine has, for trials that only wait."""

from __future__ import annotations

import logging

from search.cluster.session import WORKER_VARIABLES, configure_ray


def start_ray(n_cpus: int, object_store_bytes: int) -> None:
    """Start Ray as `search.cluster.session.ray_session` does, with other limits.

    Args:
        n_cpus: Logical CPUs.
        object_store_bytes: Maximum size of the object store.
    """
    configure_ray()
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",  # never join a cluster that happens to run on this machine
        num_cpus=n_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=object_store_bytes,
        runtime_env={"env_vars": WORKER_VARIABLES},
    )
