"""Two machines of one CPU each, pretended on one: the second one is killed and replaced on request.

Prints the address. "kill" in a line of the input kills the second machine's raylet, "add" adds
another machine; each is answered by a line. Ends with its input.
"""

import os
import sys

os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a loaded machine takes long
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")

from ray.cluster_utils import Cluster

STORE_BYTES = 200 * 2**20
SECOND_ADDRESS = "127.0.0.2"


def main() -> None:
    """Start them, and do what is asked for."""
    small = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        second = cluster.add_node(**small, node_ip_address=SECOND_ADDRESS)
        cluster.wait_for_nodes()
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.strip() == "kill":
                second.all_processes["raylet"][0].process.kill()
            else:
                cluster.remove_node(second)
                second = cluster.add_node(**small, node_ip_address=SECOND_ADDRESS)
                cluster.wait_for_nodes()
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
