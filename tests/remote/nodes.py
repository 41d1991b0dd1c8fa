"""Ray's cluster of several nodes on one machine, for machines that are slow."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.remote.live import until


class Nodes(Cluster):
    """Ray's; its nodes are there, and gone, when these methods return."""

    def add_node(self, **settings: Any) -> Any:
        """Its agents are told their ports: a raylet that has to wait for them ends after 15 s."""
        names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        with ExitStack() as stack:  # all open at once, so that all are different
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
            ports = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
        return super().add_node(**settings, **ports)

    def remove_node(self, node: Any, allow_graceful: bool = True) -> None:
        """Returns when the others know."""
        super().remove_node(node, allow_graceful)
        if ray.is_initialized():  # else all end
            until(
                lambda: sum(n["Alive"] for n in ray.nodes()) == 1 + len(self.worker_nodes), "Ray knows that it is gone"
            )
