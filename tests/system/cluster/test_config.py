"""The cluster files match Ray's schema, and have what every node needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

# `ray up` has no public way to check a file without an account of the cloud that it names.
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]
FILES = ("cluster.yaml", "clusters/local.yaml")


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A cluster file as `ray up` completes it."""
    prepared: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / request.param).read_text()))
    return prepared


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(config)


def test_ray_refuses_a_mistake(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="max_workerz"):
        validate_config({**config, "max_workerz": 3})


def test_the_token_is_copied_to_every_node_and_required(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for role in ("head", "worker"):
        (start,) = (c for c in config[f"{role}_start_ray_commands"] if "ray start" in c)
        assert "RAY_AUTH_MODE=token" in start
        # A driver on the node needs the token as well.
        assert any("RAY_AUTH_MODE=token" in c for c in config[f"{role}_setup_commands"])


def test_every_node_installs_the_pinned_versions(config: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        (install,) = (c for c in config[f"{role}_setup_commands"] if "classifier-search &&" in c)
        assert "--constraint constraints.txt" in install
        assert "[cluster]" in install


def test_the_dashboard_listens_on_the_head_only(config: dict[str, Any]) -> None:
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_aws_workers_are_spot_gpus_that_stop_when_idle() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1)
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["idle_timeout_minutes"] <= 15
    parameter = gpu["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    assert re.fullmatch(r"/aws/service/deeplearning/ami/x86_64/[\w.-]+/latest/ami-id", parameter)
    policy = json.loads((ROOT / "clusters" / "aws-policy.json").read_text())
    for needed in ("ec2:*", "iam:PassRole", "ssm:GetParameters", "s3:PutObject"):
        assert any(needed in statement["Action"] for statement in policy["Statement"])


def test_all_nodes_of_an_on_premises_cluster_are_started() -> None:
    config = prepare_config(yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text()))
    (node_type,) = config["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == 2
