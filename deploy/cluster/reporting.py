"""Report what a process on a cluster measures to the exporter, which it finds by its name.

    LearnerActor, CollectorActor, ..: settings.telemetry("actor", 3) --> Telemetry, reported every two seconds

The exporter may come, go and come back; nobody waits for it. Reports while it is away are dropped: the next says all.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from qttdm.common.metrics.instruments import Component
from qttdm.common.metrics.process import report_process_use
from qttdm.common.metrics.reporter import Reporter
from qttdm.common.metrics.telemetry import Identity, Report, Telemetry
from qttdm.deploy.cluster.exporter_actor import NAME
from qttdm.deploy.configs.cluster_config import NAMESPACE


def send(report: Report, seconds: float) -> bool:
    """Send a report to the exporter, as Reporter asks for."""
    if not ray.is_initialized():
        return False
    exporter = find_exporter()
    if exporter is None:
        return False
    try:
        ray.get(exporter.report.remote(report.packed()), timeout=seconds)
    except RayError:
        return False
    return True


def find_exporter() -> Any:
    """Look up the exporter; None if there is none."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except (ValueError, RayError):
        return None


def start_reporting(run: str, seed: int, task: str, component: Component, index: int = 0) -> Telemetry:
    """Make the telemetry of this process, an actor's or the driver's, and report it from now on."""
    restarted = component != "driver" and ray.get_runtime_context().was_current_actor_reconstructed
    telemetry = Telemetry(Identity(run, str(seed), task, component, str(index)), restarted)
    report_process_use(telemetry)
    telemetry.reporter = Reporter(telemetry, send)
    return telemetry


def report_end(run: str, seed: int, seconds: float = 2.0) -> None:
    """Report to the exporter, if there is one, that this seed's processes have ended in good order."""
    exporter = find_exporter()
    if exporter is not None:
        ray.wait([exporter.end.remote(run, str(seed))], timeout=seconds)
