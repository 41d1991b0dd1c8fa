"""What only Ray's private interfaces can do; a test forbids them elsewhere. To be looked at when Ray's version changes.

- Find this machine's head: publicly only `ray.init("auto")`, which cannot be asked for the address before it joins.
- Ask a head whether it lets us in: given a wrong address `ray.init` ends the process after two minutes, and given a
  wrong token it prints twenty lines in as many seconds.
- List the free resources of each node: `ray.available_resources` adds up all nodes.
- Read an actor's state: `ray.util.state` needs the dashboard, which a cluster may have been started without.
"""

from __future__ import annotations

from typing import Any

import grpc
import ray._private.state
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die

ANSWER_SECONDS = 10.0


def find_head() -> str:
    """Return host:port of the cluster that runs on this machine. ConnectionError if there is none."""
    return str(canonicalize_bootstrap_address_or_die("auto"))


def ask_head(address: str) -> tuple[grpc.StatusCode, str]:
    """Ask the head at host:port for its cluster's id, with this process's token; return gRPC's status and why.

    OK: let in. UNAUTHENTICATED: the token is missing or wrong. UNAVAILABLE: nothing there speaks gRPC. Others: not Ray.
    """
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            return error.code(), " ".join(error.details().split())
    return grpc.StatusCode.OK, ""


def free_resources() -> dict[str, dict[str, float]]:
    """Return what is free now on each node, by the node's id."""
    return ray._private.state.available_resources_per_node()


def is_alive(actor: Any) -> bool:
    """Has the actor of this handle a process that has started? False while it waits for a place or is begun anew."""
    state: str = ray._private.state.actors(actor._actor_id.hex())["State"]
    return state == "ALIVE"
