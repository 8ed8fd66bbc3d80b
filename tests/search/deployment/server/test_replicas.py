"""Serve's options and its end, without Ray."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from search.deployment.server.replicas import delete_application, deployment_options


@pytest.mark.parametrize(
    ("n_replicas", "n_gpus", "fraction"), [(1, 0, 0), (1, 1, 1), (4, 2, 0.5), (2, 8, 1)]
)
def test_replicas_share_the_gpus_and_reserve_no_cpu(n_replicas, n_gpus, fraction):
    options = deployment_options(n_replicas, n_gpus, 35.0)
    assert options["num_replicas"] == n_replicas
    assert options["ray_actor_options"] == {"num_cpus": 0, "num_gpus": fraction}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Ray Serve imports
def test_deleting_waits_for_the_longest_request(monkeypatch):
    deleted = []

    def delete(name: str) -> None:
        deleted.append(name)
        if len(deleted) == 1:
            raise TimeoutError("not deleted after 60s")

    monkeypatch.setattr("ray.serve.delete", delete)
    delete_application(120.0)
    assert deleted == ["classifier"] * 2
