"""Nodes of a Ray session: their resources, those that may still join, and where actors run.

The driver's node is the one that cannot be lost during a run, so actors that others depend
on run there. All other nodes may join and leave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.cluster.session import SessionError
from trainables.json_text import parse_json

_log = logging.getLogger(__name__)

EVERYWHERE = "SPREAD"
"""Scheduling strategy of tasks that are distributed over all nodes."""

AUTOSCALING_FILE = Path("ray_bootstrap_config.yaml")
"""Cluster configuration that `ray up` writes to the home folder of the head node, as JSON."""

GPU_PATIENCE_SECONDS = 1800.0
"""How long a run waits for the first node with a GPU: spot instances may take long to start."""


@dataclass(frozen=True)
class Node:
    """Resources of a node.

    Attributes:
        address: IP address.
        cpus: Logical CPUs.
        gpus: GPUs.
        gpu_kind: Ray's accelerator type, such as "A10G"; "" without GPUs, or if it is unknown.
        store_bytes: Capacity of the object store.
    """

    address: str
    cpus: float
    gpus: float
    gpu_kind: str
    store_bytes: int


_known: set[str] = set()
"""Addresses of the nodes that were alive when they were last listed."""


def nodes() -> list[Node]:
    """Return the nodes that take work, and log which of them joined or left since the last call.

    A node that is drained, since it will be taken away, takes none.
    """
    draining = draining_nodes()
    alive = [
        _node(node["Resources"], str(node["NodeManagerAddress"]))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]
    addresses = {node.address for node in alive}
    for node in alive:
        if node.address not in _known:
            _log.info("node %s joined: %s", node.address, node)
    for address in sorted(_known - addresses):
        _log.warning("node %s left", address)
    _known.clear()
    _known.update(addresses)
    return alive


def is_one_cpu_node() -> bool:
    """Return whether this machine is the only node, and has no GPU for work.

    Then this process, which has imported PyTorch, computes a little sooner than workers start.
    """
    return [node.gpus for node in nodes()] == [0.0]


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are drained: `ray drain-node`, SIGTERM, the autoscaler."""
    # Private, but the only way: Ray Train asks in the same way, and `ray.nodes()` does not say.
    # tests/system/cluster/test_two_nodes.py drains a node, and fails if this changes.
    return set(ray._private.state.state.get_draining_nodes())


def is_draining() -> bool:
    """Return whether the node of this worker is drained."""
    return ray.get_runtime_context().get_node_id() in draining_nodes()


def _node(resources: Mapping[str, float], address: str = "") -> Node:
    kinds = [name for name in resources if name.startswith("accelerator_type:")]
    gpus = float(resources.get("GPU", 0))
    return Node(
        address,
        float(resources.get("CPU", 0)),
        gpus,
        kinds[0].removeprefix("accelerator_type:") if kinds and gpus else "",
        int(resources.get("object_store_memory", 0)),
    )


def object_store_bytes(fraction: float) -> int:
    """Return a fraction of the capacity of the smallest object store among the nodes."""
    return int(min(node.store_bytes for node in nodes()) * fraction)


def autoscaler_nodes(home: Path | None = None) -> list[Node]:
    """Return the nodes that the autoscaler may add to those that are alive.

    They are known on the head node of a cluster that `ray up` launched; elsewhere there are none.
    The configuration of an on-premises cluster does not list the resources of its nodes, so these
    are not returned either.

    Args:
        home: Folder of `AUTOSCALING_FILE`; None is the user's.
    """
    try:
        config = parse_json(((home or Path.home()) / AUTOSCALING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    n_left = int(config.get("max_workers", 0)) - (len(nodes()) - 1)
    possible: list[Node] = []
    for name, node_type in config.get("available_node_types", {}).items():
        if name != config.get("head_node_type"):
            node = _node(node_type.get("resources") or {})
            possible += [node] * int(node_type.get("max_workers", 0))
    possible = sorted((node for node in possible if node.cpus), key=lambda node: -node.gpus)
    return possible[: max(0, n_left)]


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling strategy of an actor that has to run on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def wait_for_gpu(
    say: Callable[[str], None], patience_seconds: float = GPU_PATIENCE_SECONDS
) -> None:
    """Wait until a node with a GPU is alive, if the autoscaler can start one and none is.

    Whether there are GPUs decides what a trial asks for, so a run has to know it before it begins.

    Args:
        say: Called with each line for the user.
        patience_seconds: How long to wait.

    Raises:
        SessionError: no such node joined in time.
    """
    if any(node.gpus for node in nodes()) or not any(node.gpus for node in autoscaler_nodes()):
        return
    from ray.autoscaler.sdk import request_resources  # slow to import, and rarely needed

    started = monotonic()
    say("waiting for the autoscaler to start the first node with a GPU")
    request_resources(bundles=[{"GPU": 1}])
    try:
        while not any(node.gpus for node in nodes()):
            if monotonic() - started > patience_seconds:
                raise SessionError(
                    f"no node with a GPU joined within {patience_seconds / 60:.0f} minutes:"
                    " `ray status` shows why; try another instance type or region, or on-demand"
                    " instances, in cluster.yaml"
                )
            sleep(1.0)
    finally:
        request_resources(bundles=[])
    say(f"a node with a GPU joined after {monotonic() - started:.0f} s")
