"""Waits until a Ray cluster has a number of nodes, or gives up at a deadline.

Exit status 0 when they are all there, 1 when the time is over. Used by `slurm.sbatch`,
where the nodes of one job start at different times.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

POLL_INTERVAL_S = 2.0
# One look at the cluster, in a process of its own: a connection to a head that
# is not up yet, or never comes, must not outlive the deadline.
COUNT_NODES = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
"""


def count_nodes(address: str, timeout_s: float) -> int:
    """Number of live nodes; 0 where the head does not answer within `timeout_s`."""
    command = [sys.executable, "-c", COUNT_NODES, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return 0
    lines = done.stdout.split()
    return int(lines[-1]) if done.returncode == 0 and lines else 0


def wait_for_nodes(address: str, num_nodes: int, timeout_s: float) -> bool:
    """True as soon as `num_nodes` are alive, False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    seen = -1
    while (left_s := deadline - time.monotonic()) > 0:
        alive = count_nodes(address, timeout_s=left_s)
        if alive != seen:
            print(f"wait_for_nodes: {alive} of {num_nodes} nodes at {address}", flush=True)
            seen = alive
        if alive >= num_nodes:
            return True
        time.sleep(min(POLL_INTERVAL_S, max(0.0, deadline - time.monotonic())))
    return False


def main() -> int:
    """Parses the command line and waits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="host:port of the head")
    parser.add_argument("--nodes", required=True, type=int, help="how many must be alive")
    parser.add_argument("--timeout-s", required=True, type=float, help="deadline in seconds")
    arguments = parser.parse_args()
    if wait_for_nodes(arguments.address, arguments.nodes, arguments.timeout_s):
        return 0
    print(
        f"wait_for_nodes: fewer than {arguments.nodes} nodes after {arguments.timeout_s:g} s; "
        "see the log of each node's step",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
