"""The machines of a session, from stand-ins for what Ray says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.cluster.nodes import AUTOSCALING_FILE, Node, autoscaler_nodes, machines, wait_for_gpu
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
    """Stand in for a cluster of such machines, and one that is lost."""
    nodes = [
        {"Alive": True, "NodeManagerAddress": f"10.0.0.{i}", "Resources": r}
        for i, r in enumerate(resources)
    ]
    lost = {"Alive": False, "NodeManagerAddress": "10.0.0.9", "Resources": GPU}
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [*nodes, lost])


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the head of a cluster that `ray up` made."""
    (tmp_path / AUTOSCALING_FILE).write_text(json.dumps(CONFIG))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def test_machines_that_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    alive(monkeypatch, HEAD, GPU)
    assert machines() == [
        Node("10.0.0.0", 8, 0, "", 10**9),
        Node("10.0.0.1", 8, 1, "A10G", 2 * 10**9),
    ]


def test_machines_to_come_are_those_of_the_file_that_are_not_there(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive(monkeypatch, HEAD)
    assert [(m.cpus, m.gpus) for m in autoscaler_nodes()] == [(8, 1), (8, 1), (16, 0)]
    alive(monkeypatch, HEAD, GPU, GPU)
    assert len(autoscaler_nodes()) == 1
    alive(monkeypatch, HEAD, GPU, GPU, GPU)
    assert autoscaler_nodes() == []


@pytest.mark.parametrize("content", [None, "", "{}", '{"max_workers": 2}'])
def test_where_ray_up_was_not_nobody_is_to_come(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive(monkeypatch, HEAD)
    if content is not None:
        (tmp_path / AUTOSCALING_FILE).write_text(content)
    assert autoscaler_nodes(tmp_path) == []


def test_the_first_gpu_is_asked_for_and_waited_for(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def request_resources(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)
        alive(monkeypatch, HEAD, GPU)

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request_resources)
    alive(monkeypatch, HEAD)
    said: list[str] = []
    wait_for_gpu(said.append)
    assert asked == [[{"GPU": 1}], []], "asked for, and no longer than needed"
    assert "a machine with a GPU is there" in said[-1]
    wait_for_gpu(said.append)
    assert len(asked) == len(said) == 2, "where there is one, nothing is waited for"


def test_a_gpu_that_does_not_come_is_one_clear_error(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: None)
    alive(monkeypatch, HEAD)
    with pytest.raises(SessionError, match=r"no machine with a GPU came within 0 minutes"):
        wait_for_gpu(lambda _: None, patience_seconds=0.0)
