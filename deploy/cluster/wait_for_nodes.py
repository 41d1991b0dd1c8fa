"""Wait until Ray has so many nodes: they come up one after the other, and a run is checked against them.

python -m qttdm.deploy.cluster.wait_for_nodes 3       # of the cluster in RAY_ADDRESS, else of this machine's
"""

from __future__ import annotations

import sys
import time

import ray

from qttdm.deploy.cluster.preflight import connect

TIMEOUT_SECONDS = 300.0
"""A first `ray start` from busy shared storage takes minutes, not more."""


def wait_for_nodes(wanted: int, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Return when that many nodes are alive. TimeoutError says how it was at the end."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            alive = alive_nodes()
        except Exception as error:  # as far as a starting head got, Ray says it with one exception or another
            state = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            if alive >= wanted:
                return
            state = f"{alive} did"
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s for {wanted} nodes to join Ray: {state}")
        time.sleep(1)


def alive_nodes() -> int:
    """Count the cluster's live nodes. Raises while no cluster answers."""
    connect()
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    try:
        wait_for_nodes(int(sys.argv[1]))
    except TimeoutError as error:
        sys.exit(f"qttdm: {error}")
