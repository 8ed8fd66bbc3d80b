"""Nodes of a session, listed from a stand-in for Ray's own list."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from search.cluster.nodes import (
    AUTOSCALING_FILE,
    Node,
    autoscaler_nodes,
    is_one_cpu_node,
    nodes,
    object_store_bytes,
    wait_for_gpu,
)
from search.cluster.session import SessionError

CONFIG = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 8, "GPU": 1, "accelerator_type:A10G": 1}, "max_workers": 2},
    },
}
HEAD = {"CPU": 8.0, "object_store_memory": 1e9}
GPU = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A10G": 1.0, "object_store_memory": 2e9}


def alive(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    """Stand in for a cluster of such nodes, one that was lost, and one that is drained."""
    listed = [
        {"Alive": i != 9, "NodeManagerAddress": f"10.0.0.{i}", "Resources": r, "NodeID": str(i)}
        for i, r in [*enumerate(resources), (8, GPU), (9, GPU)]
    ]
    monkeypatch.setattr("ray.nodes", lambda: listed)
    monkeypatch.setattr("search.cluster.nodes.draining_nodes", lambda: {"8"})


@pytest.mark.parametrize(
    ("resources", "expected"), [([HEAD], True), ([GPU], False), ([HEAD, HEAD], False)]
)
def test_one_node_without_a_gpu_is_distinguished_from_a_cluster(
    monkeypatch: pytest.MonkeyPatch, resources: list[dict[str, float]], expected: bool
) -> None:
    alive(monkeypatch, *resources)
    assert is_one_cpu_node() is expected


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder on the head node of a cluster that `ray up` launched."""
    (tmp_path / AUTOSCALING_FILE).write_text(json.dumps(CONFIG))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def test_nodes_are_those_that_are_alive_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    alive(monkeypatch, HEAD, GPU)
    assert nodes() == [
        Node("10.0.0.0", 8, 0, "", 10**9),
        Node("10.0.0.1", 8, 1, "A10G", 2 * 10**9),
    ]


def test_the_smallest_object_store_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    alive(monkeypatch, HEAD, GPU)
    assert object_store_bytes(0.2) == 2 * 10**8


def test_nodes_that_join_or_leave_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alive(monkeypatch, HEAD)
    nodes()
    caplog.clear()
    with caplog.at_level(logging.INFO, "search.cluster.nodes"):
        alive(monkeypatch, HEAD, GPU)
        nodes()
        nodes()
        assert [record.message[:20] for record in caplog.records] == ["node 10.0.0.1 joined"]
        alive(monkeypatch, HEAD)
        nodes()
    assert caplog.records[-1].message == "node 10.0.0.1 left"


def test_autoscaler_nodes_are_those_of_the_file_that_have_not_joined(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive(monkeypatch, HEAD)
    assert [(node.cpus, node.gpus) for node in autoscaler_nodes()] == [(8, 1), (8, 1), (16, 0)]
    alive(monkeypatch, HEAD, GPU, GPU)
    assert len(autoscaler_nodes()) == 1
    alive(monkeypatch, HEAD, GPU, GPU, GPU)
    assert autoscaler_nodes() == []


@pytest.mark.parametrize("content", [None, "", "{}", '{"max_workers": 2}'])
def test_without_ray_up_there_are_no_autoscaler_nodes(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive(monkeypatch, HEAD)
    if content is not None:
        (tmp_path / AUTOSCALING_FILE).write_text(content)
    assert autoscaler_nodes(tmp_path) == []


def test_the_first_gpu_is_requested_and_waited_for(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[Any] = []

    def request_resources(bundles: list[dict[str, float]]) -> None:
        requested.append(bundles)
        alive(monkeypatch, HEAD, GPU)

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request_resources)
    alive(monkeypatch, HEAD)
    lines: list[str] = []
    wait_for_gpu(lines.append)
    assert requested == [[{"GPU": 1}], []], "requested no longer than needed"
    assert "a node with a GPU joined" in lines[-1]
    wait_for_gpu(lines.append)
    assert len(requested) == len(lines) == 2, "where there is one, there is no waiting"


def test_a_gpu_that_does_not_join_is_one_clear_error(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: None)
    alive(monkeypatch, HEAD)
    with pytest.raises(SessionError, match=r"no node with a GPU joined within 0 minutes"):
        wait_for_gpu(lambda _: None, patience_seconds=0.0)
