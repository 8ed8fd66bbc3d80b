"""The machines of a session: what each of them has, what may still come, and what runs where.

The driver's machine is the one that is not lost: what others depend on is kept there. All the rest
may come and go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.cluster.session import SessionError

EVERYWHERE = "SPREAD"
"""Scheduling strategy of tasks that are to run on as many machines as there are."""

AUTOSCALING_FILE = Path("ray_bootstrap_config.yaml")
"""What `ray up` leaves in the home folder of the head, as JSON."""

GPU_PATIENCE_SECONDS = 1800.0
"""How long a run waits for the first machine with a GPU: spot markets take their time."""


@dataclass(frozen=True)
class Node:
    """What one machine gives to Ray.

    Attributes:
        address: Its IP address.
        cpus: Logical CPUs.
        gpus: GPUs.
        gpu_kind: As Ray calls it, such as "A10G"; "" without GPUs or where Ray knows none.
        store_bytes: Of its object store.
    """

    address: str
    cpus: float
    gpus: float
    gpu_kind: str
    store_bytes: int


def machines() -> list[Node]:
    """Return the machines that are alive."""
    return [
        _node(node["Resources"], str(node["NodeManagerAddress"]))
        for node in ray.nodes()
        if node["Alive"]
    ]


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


def autoscaler_nodes(home: Path | None = None) -> list[Node]:
    """Return the machines that the autoscaler may add to those that are alive.

    They are known on the head of a cluster that `ray up` made; elsewhere there are none. Machines
    of an on-premises cluster say nothing of themselves before they come.

    Args:
        home: Folder of `AUTOSCALING_FILE`; None is the user's.
    """
    try:
        config = json.loads(((home or Path.home()) / AUTOSCALING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    left = int(config.get("max_workers", 0)) - (len(machines()) - 1)
    coming: list[Node] = []
    for name, node_type in config.get("available_node_types", {}).items():
        if name != config.get("head_node_type"):
            machine = _node(node_type.get("resources") or {})
            coming += [machine] * int(node_type.get("max_workers", 0))
    coming = sorted((m for m in coming if m.cpus), key=lambda m: -m.gpus)
    return coming[: max(0, left)]


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy of an actor that others depend on: it lives and dies with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def wait_for_gpu(
    say: Callable[[str], None], patience_seconds: float = GPU_PATIENCE_SECONDS
) -> None:
    """Have the autoscaler start a machine with a GPU where it can and none is there, and wait.

    What a run does depends on whether there are GPUs, so it must not go on before it knows.

    Args:
        say: Tells the user a line.
        patience_seconds: How long to wait.

    Raises:
        SessionError: none came.
    """
    if any(m.gpus for m in machines()) or not any(m.gpus for m in autoscaler_nodes()):
        return
    from ray.autoscaler.sdk import request_resources  # takes a while, and is rarely needed

    started = monotonic()
    say("waiting for the first machine with a GPU, which the autoscaler starts")
    request_resources(bundles=[{"GPU": 1}])
    try:
        while not any(machine.gpus for machine in machines()):
            if monotonic() - started > patience_seconds:
                raise SessionError(
                    f"no machine with a GPU came within {patience_seconds / 60:.0f} minutes:"
                    " `ray status` says why; try another instance type or region, or on-demand"
                    " instances, in cluster.yaml"
                )
            sleep(1.0)
    finally:
        request_resources(bundles=[])
    say(f"a machine with a GPU is there after {monotonic() - started:.0f} s")


def describe_nodes() -> dict[str, Any]:
    """Return what the machines have, by address, for the run's settings."""
    return {
        m.address: {"cpus": m.cpus, "gpus": m.gpus, "gpu": m.gpu_kind, "store_bytes": m.store_bytes}
        for m in machines()
    }
