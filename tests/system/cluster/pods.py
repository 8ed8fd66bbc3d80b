"""Read the files of `clusters/kuberay/`, and start their pods' commands as KubeRay does."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "clusters" / "kuberay"
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay_schema.yaml").read_text())
ALIASES = {
    "RayJob.spec.rayClusterSpec": "RayCluster.spec",
    "RayCluster.spec.headGroupSpec.template": "template",
    "RayCluster.spec.workerGroupSpecs[].template": "template",
    "template.spec.containers[].readinessProbe": "template.spec.containers[].livenessProbe",
}
"""Objects whose schemas are the same."""

_TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict, "number": float}
_UNITS = {"": 1, "Mi": 2**20, "Gi": 2**30}


@cache
def documents(name: str) -> dict[str, Any]:
    """Return the objects of a file, by kind."""
    loaded = yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    return {document["kind"]: document for document in loaded}


def cluster_spec(name: str) -> dict[str, Any]:
    """Return the cluster that a file describes."""
    found = documents(name)
    spec: dict[str, Any] = (
        found["RayJob"]["spec"]["rayClusterSpec"]
        if "RayJob" in found
        else found["RayCluster"]["spec"]
    )
    return spec


def schema_errors(value: Any, path: str, version: tuple[int, int, int]) -> list[str]:
    """Return what an operator of a version would refuse in an object, one line for each."""
    path = ALIASES.get(path, path)
    if isinstance(value, list):
        return [line for one in value for line in schema_errors(one, f"{path}[]", version)]
    if not isinstance(value, dict) or path not in SCHEMA:
        return []
    errors = []
    rules = {key: rule.split(", ") for key, rule in _rules(path).items()}
    for key, (_, *conditions) in rules.items():
        if "required" in conditions and key not in value:
            errors.append(f"{path} lacks {key}")
    for key, inner in value.items():
        if key not in rules or not _exists(rules[key][1:], version):
            errors.append(f"{path} has no {key} in {version}")
        elif not _fits(inner, rules[key][0]):
            errors.append(f"{path}.{key} must be {rules[key][0]}, but is {inner!r}")
        elif rules[key][0] in ("object", "array of object") and not _is_known(f"{path}.{key}"):
            errors.append(f"the schema of {path}.{key} is missing here")
        errors += schema_errors(inner, f"{path}.{key}", version)
    return errors


def _rules(path: str) -> dict[str, str]:
    rules: dict[str, str] = SCHEMA[path]
    return rules


def _is_known(path: str) -> bool:
    return any(ALIASES.get(p, p) in SCHEMA for p in (path, f"{path}[]"))


def _exists(conditions: list[str], version: tuple[int, int, int]) -> bool:
    for condition in conditions:
        if match := re.fullmatch(r"(not )?since (\d+)\.(\d+)\.(\d+)", condition):
            is_since = version >= tuple(int(part) for part in match.groups()[1:])
            if is_since == bool(match[1]):
                return False
    return True


def _fits(value: Any, kind: str) -> bool:
    if kind.startswith("array of "):
        inner = kind.removeprefix("array of ")
        return isinstance(value, list) and all(_fits(one, inner) for one in value)
    if kind.startswith("map of "):
        inner = kind.removeprefix("map of ")
        return isinstance(value, dict) and all(_fits(one, inner) for one in value.values())
    if kind.startswith("one of "):
        return value in kind.removeprefix("one of ").split(" | ")
    if " or " in kind:
        return any(_fits(value, one) for one in kind.split(" or "))
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def pod_command(group: dict[str, Any], head: str | None = None, **changed: str) -> list[str]:
    """Return the command of a group's pods, as KubeRay generates it from parameters and limits.

    Args:
        group: `headGroupSpec` or one of `workerGroupSpecs`.
        head: The head's address, for a worker.
        changed: Parameters of `ray start` that differ, with _ for -.
    """
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    parameters = {
        "num-cpus": limits["cpu"],
        "memory": str(quantity(limits["memory"])),
        "num-gpus": limits.get("nvidia.com/gpu"),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        **({"dashboard-host": "0.0.0.0"} if head is None else {"address": f"{head}:6379"}),
        **group["rayStartParams"],
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    options = [f"--{key}={value}" for key, value in sorted(parameters.items()) if value]
    start = "ray start " + " ".join((["--head"] if head is None else []) + ["--block", *options])
    return ["/bin/bash", "-c", "--", f"ulimit -n 65536; {start}"]


def pod_environment(group: dict[str, Any]) -> dict[str, str]:
    """Return the variables that a group's container sets to a value."""
    (container,) = group["template"]["spec"]["containers"]
    return {line["name"]: line["value"] for line in container["env"] if "value" in line}


def submit_command(head: str, submission: str, entrypoint: str) -> str:
    """Return what the operator's submitter runs in its shell."""
    address = f"--address http://{head}:8265"
    return (
        f"ray job submit {address} --no-wait --submission-id {submission} -- {entrypoint};"
        f" ray job logs {address} --follow {submission}"
    )


def quantity(text: str) -> int:
    """Return a quantity of Kubernetes, such as 28Gi, as a number."""
    match = re.fullmatch(r"(\d+)(|Mi|Gi)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity of these units: {', '.join(_UNITS)}")
    return int(match[1]) * _UNITS[match[2]]
