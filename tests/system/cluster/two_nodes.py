"""Start a Ray cluster of two nodes with one CPU each, as processes on this machine.

```
python -m tests.system.cluster.two_nodes
```

prints the address, and ends with its standard input.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 200 * 2**20
SECOND_ADDRESS = "127.0.0.2"


def main() -> None:
    """Start the nodes, and wait."""
    small = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        cluster.add_node(**small, node_ip_address=SECOND_ADDRESS)
        cluster.wait_for_nodes()
        print(cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
