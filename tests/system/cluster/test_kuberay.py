"""The files for Kubernetes fit the operator's schemas, and have what a search needs."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from tests.system.cluster.pods import (
    FOLDER,
    ROOT,
    cluster_spec,
    documents,
    pod_command,
    pod_environment,
    quantity,
    schema_errors,
)

VERSIONS = [(1, 4, 0), (1, 5, 1), (1, 6, 0), (1, 7, 0)]
FILES = ("rayjob.yaml", "raycluster.yaml")
KINDS = {"rayjob.yaml": "RayJob", "raycluster.yaml": "RayCluster"}


def errors(name: str, version: tuple[int, int, int], spec: Any = None) -> list[str]:
    kind = KINDS[name]
    spec = documents(name)[kind]["spec"] if spec is None else spec
    return schema_errors(spec, f"{kind}.spec", version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cluster_fits_the_operators_schema(version: tuple[int, int, int]) -> None:
    assert errors("raycluster.yaml", version) == []


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_the_job_fits_the_operators_schema(version: tuple[int, int, int]) -> None:
    assert errors("rayjob.yaml", version) == []


def test_an_operator_that_cannot_know_the_token_refuses_the_job() -> None:
    (line,) = errors("rayjob.yaml", (1, 4, 0))
    assert "has no authOptions" in line


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("headGroupSpec", "tempate"), {}, "has no tempate"),
        (("enableInTreeAutoscaling",), "yes", "must be boolean"),
        (("autoscalerOptions", "version"), "v3", "must be one of v1 | v2"),
        (("autoscalerOptions", "resources", "limits"), {"cpu": [1]}, "must be map of"),
        (("headGroupSpec", "template", "spec", "priority"), True, "must be integer"),
        (("headGroupSpec", "template", "spec", "containers"), None, "lacks containers"),
    ],
)
def test_mistakes_are_found(path: tuple[str, ...], value: Any, found: str) -> None:
    spec = copy.deepcopy(cluster_spec("raycluster.yaml"))
    *parents, last = path
    target = spec
    for key in parents:
        target = target[key]
    target.pop(last, None)
    if value is not None:
        target[last] = value
    (line,) = errors("raycluster.yaml", (1, 7, 0), spec)
    assert found in line


@pytest.mark.parametrize("name", FILES)
def test_workers_are_gpus_that_start_when_needed_and_leave_in_time(name: str) -> None:
    (gpu,) = cluster_spec(name)["workerGroupSpecs"]
    pod = gpu["template"]["spec"]
    (container,) = pod["containers"]
    assert (gpu["replicas"], gpu["minReplicas"]) == (0, 0)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    tolerated = {line["key"] for line in pod["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated
    drain = pod_environment(gpu)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert 0 < int(drain) < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", FILES)
def test_pods_have_memory_for_the_object_store(name: str) -> None:
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        shared = volumes[mounts["/dev/shm"]]["emptyDir"]
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        store = float(pod_environment(group)["RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION"])
        assert shared["medium"] == "Memory"
        assert store * quantity(limits["memory"]) <= quantity(shared["sizeLimit"])


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {line["name"]: line.get("value", line.get("valueFrom")) for line in container["env"]}


def test_every_container_of_the_cluster_has_the_token() -> None:
    spec = cluster_spec("raycluster.yaml")
    containers = [
        spec["autoscalerOptions"],
        spec["headGroupSpec"]["template"]["spec"]["containers"][0],
        spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0],
    ]
    for container in containers:
        found = variables(container)
        assert found["RAY_AUTH_MODE"] == "token"
        assert found["RAY_AUTH_TOKEN"]["secretKeyRef"] == {
            "name": "classifier-search-token",
            "key": "auth_token",
        }


def test_the_operator_gives_the_job_a_token() -> None:
    assert cluster_spec("rayjob.yaml")["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", FILES)
def test_a_search_knows_which_nodes_the_autoscaler_may_start(name: str) -> None:
    spec = cluster_spec(name)
    known = json.loads(documents(name)["ConfigMap"]["data"]["ray_bootstrap_config.yaml"])
    (group,) = spec["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert known["max_workers"] == group["maxReplicas"]
    assert known["head_node_type"] not in known["available_node_types"]
    assert known["available_node_types"] == {
        group["groupName"]: {
            "resources": {"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])},
            "max_workers": group["maxReplicas"],
        }
    }


def test_both_files_have_the_same_pods_but_for_token_and_script() -> None:
    job, cluster = (copy.deepcopy(cluster_spec(name)) for name in FILES)
    for spec in (job, cluster):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            container["env"] = [x for x in container["env"] if "AUTH" not in x["name"]]
            container["volumeMounts"] = [
                x for x in container["volumeMounts"] if x["mountPath"] != "/config"
            ]
        spec.pop("authOptions", None)
        spec["autoscalerOptions"].pop("env", None)
    assert job == cluster


def test_ray_is_the_pinned_version() -> None:
    (pin,) = (
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    for name in FILES:
        assert pin == f"ray=={cluster_spec(name)['rayVersion']}"


def test_the_heads_volume_is_the_one_that_storage_creates() -> None:
    storage = {d["kind"]: d for d in yaml.safe_load_all((FOLDER / "storage.yaml").read_text())}
    claim = storage["PersistentVolumeClaim"]["metadata"]["name"]
    pods = [storage["Pod"]["spec"]]
    pods += [cluster_spec(name)["headGroupSpec"]["template"]["spec"] for name in FILES]
    for pod in pods:
        claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "data"]
        assert claims == [{"claimName": claim}]
        assert pod["securityContext"]["fsGroup"] == 1000


def test_commands_are_those_that_the_operator_generates() -> None:
    spec = cluster_spec("rayjob.yaml")
    *_, head = pod_command(spec["headGroupSpec"])
    *_, worker = pod_command(spec["workerGroupSpecs"][0], head="10.0.0.1")
    assert head == (
        "ulimit -n 65536; ray start --head --block --dashboard-agent-listen-port=52365"
        " --dashboard-host=0.0.0.0 --memory=30064771072 --metrics-export-port=8080 --num-cpus=7"
    )
    assert worker == (
        "ulimit -n 65536; ray start --block --address=10.0.0.1:6379"
        " --dashboard-agent-listen-port=52365 --memory=30064771072 --metrics-export-port=8080"
        " --num-cpus=7 --num-gpus=1"
    )
