"""Launch a cluster on hosts with `ray up` and `clusters/local.yaml`, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.system.cluster.hosts import BASE, USER_KEY, Host

ROOT = Path(__file__).parents[3]
STORE_BYTES = 600 * 2**20

NODES = """
import json, os
os.environ["RAY_AUTH_MODE"] = "token"
import ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
print(json.dumps([[n["NodeManagerAddress"], n["Alive"]] for n in ray.nodes()]))
"""


def python() -> Path:
    """Return this machine's Python, which the hosts use as well."""
    return Path(sys.executable)


class Cluster:
    """A cluster that is launched from this machine, with a home folder of its own."""

    def __init__(self, head: Host, workers: list[Host]) -> None:
        self.head, self.workers = head, workers
        self.home = BASE / f"launcher-{len(workers)}"
        self.home.mkdir()
        self.file = self.home / "local.yaml"
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "HOME": str(self.home),
            "RAY_TMPDIR": str(self.home),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{python().parent}:{os.environ['PATH']}",
        }
        self._ray("get-auth-token", "--generate")
        self._edit()

    def up(self, n: int) -> None:
        """Start the cluster, and wait until it has this number of nodes."""
        self._ray("up", "--yes", str(self.file))
        self.wait_for(n)

    def down(self) -> None:
        """Stop the cluster."""
        self._do(sys.executable, "clusters/down.py", str(self.file))

    def addresses(self) -> list[str]:
        """Return the addresses of the nodes that are alive, ascending."""
        return sorted(address for address, is_alive in self._nodes() if is_alive)

    def n_dead(self) -> int:
        """Return the number of nodes that were alive and are not any more."""
        return sum(not is_alive for _, is_alive in self._nodes())

    def _nodes(self) -> list[tuple[str, bool]]:
        done = self.head.run(f"cd / && {python()} -c '{NODES}'", check=False)
        try:
            return [(a, alive) for a, alive in json.loads(done.stdout.splitlines()[-1])]
        except (IndexError, ValueError):
            return []

    def wait_for(self, n: int, patience_seconds: float = 300) -> list[str]:
        """Wait until this number of nodes is alive; return their addresses."""
        until = time.monotonic() + patience_seconds
        while len(found := self.addresses()) != n:
            if time.monotonic() > until:
                logs = self.head.run("tail -n 40 /tmp/ray/session_latest/logs/monitor.*").stdout
                raise RuntimeError(f"{n} nodes were expected, but {found} are alive\n{logs}")
            time.sleep(2.0)
        return found

    def _edit(self) -> None:
        """Edit the example: addresses and key, no installation, and one CPU per node.

        The hosts share this machine's Python and its cores.
        """
        config: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text())
        config["provider"]["head_ip"] = self.head.address
        config["provider"]["worker_ips"] = [worker.address for worker in self.workers]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(USER_KEY)}
        config["file_mounts"]["~/classifier-search"] = str(ROOT)
        *_, path = config["setup_commands"]
        config["setup_commands"] = [path.replace("$HOME/venv/bin", str(python().parent))]
        small = (
            # Several hosts share a core, so that Ray starts slower than on machines of their own.
            "RAY_raylet_start_wait_time_s=300 RAY_agent_register_timeout_ms=300000"
            f" ray start --num-cpus=1 --object-store-memory={STORE_BYTES}"
        )
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[commands] = [c.replace("ray start", small) for c in config[commands]]
        self.file.write_text(yaml.safe_dump(config))

    def _ray(self, *arguments: str) -> None:
        self._do(str(python().parent / "ray"), *arguments)

    def _do(self, *command: str) -> None:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=900,
            env=self._environment,
            cwd=ROOT,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
