"""Run the exporter as a Ray actor: one in a cluster, on its head node, while runs come and go.

    qttdm cluster train --ensure_exporter--> ExporterActor  named, detached, restarted for ever
    every process of every run ------report-----^           (deploy/cluster/reporting.py)

On the head node, because that is where Prometheus is told to look; so its port can be on loopback.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qttdm.common.config import ConfigError
from qttdm.common.metrics.instruments import INSTRUMENTS
from qttdm.deploy.configs.cluster_config import NAMESPACE
from qttdm.deploy.monitoring.exporter import VERSION, Exporter, serve
from qttdm.replay.remote import CPU_ONLY

NAME = "exporter"
RETRY_EVERY = 2.0  # seconds, if its port is taken
START_SECONDS = 60.0  # for its process to answer


class ExporterActor(Exporter):
    """An Exporter that serves itself."""

    def __init__(self, host: str, port: int) -> None:
        """Start from the counts in Ray's folder of this session, which ends with the cluster."""
        self.host, self.port, self.problem = host, port, ""
        context = ray.get_runtime_context()
        super().__init__(Path(context.get_temp_dir()) / context.get_session_name() / "qttdm-metrics")
        if not self._serves():
            threading.Thread(target=self._keep_trying, daemon=True).start()

    def about(self) -> tuple[str, int, str, str]:
        """Say where it serves, the error that keeps it from serving ("" if none does), and its version."""
        return self.host, self.port, self.problem, version()

    def _serves(self) -> bool:
        try:
            serve(self, self.host, self.port)
            self.problem = ""
        except ConfigError as error:
            self.problem = str(error)
        return not self.problem

    def _keep_trying(self) -> None:
        while not self._serves():
            time.sleep(RETRY_EVERY)


def version() -> str:
    """Hash everything on which the meaning of a report depends."""
    return hashlib.sha256(repr((VERSION, sorted(INSTRUMENTS.items()))).encode()).hexdigest()[:8]


def ensure_exporter(host: str, port: int) -> str:
    """Start the exporter, unless it runs. Returns one line: where the metrics are, or why there are none.

    An exporter of another version, or one that cannot serve at its address, is replaced; its counts stay.
    """
    try:
        *where, problem, its_version = _start(host, port)
        if its_version != version() or (problem and where != [host, port]):
            remove_exporter()
            *where, problem, its_version = _start(host, port)
    except (RayError, TimeoutError) as error:
        return f"no metrics: the exporter did not start ({' '.join(str(error).split())[:200]})"
    if problem:
        return f"no metrics for now: {problem}; it goes on trying, or choose another with --set cluster.metrics_port=N"
    other = "" if where == [host, port] else f"; not at {host}:{port}: a cluster has one exporter"
    return f"metrics: http://{where[0]}:{where[1]}/metrics, on the cluster's head node{other}"


def remove_exporter() -> None:
    """End the exporter, if it runs; return when its name is free."""
    try:
        ray.kill(ray.get_actor(NAME, namespace=NAMESPACE))
    except ValueError:
        return
    deadline = time.monotonic() + START_SECONDS
    while {"name": NAME, "namespace": NAMESPACE} in ray.util.list_named_actors(all_namespaces=True):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the old exporter was not gone within {START_SECONDS:g} s")
        time.sleep(0.05)


def _start(host: str, port: int) -> tuple[str, int, str, str]:
    """Start it on the head node, unless it runs; return what `about` says."""
    head = next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    options: dict[str, Any] = {
        "name": NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "runtime_env": CPU_ONLY,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(head, soft=False),
    }
    exporter: Any = ray.remote(**options)(ExporterActor).remote(host, port)
    about: tuple[str, int, str, str] = ray.get(exporter.about.remote(), timeout=START_SECONDS)
    return about
