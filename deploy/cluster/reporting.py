"""How the processes of a run on a cluster report what they measure: to the exporter, by its name.

    LearnerActor, CollectorActor, ..: settings.telemetry("actor", 3) --> Telemetry, reported every two seconds

The exporter may come, go and come back; nobody waits for it. Reports while it is away are dropped: the next says all.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayError

from qttdm.common.metrics.instruments import Component
from qttdm.common.metrics.process import report_process_use
from qttdm.common.metrics.reporter import Reporter
from qttdm.common.metrics.telemetry import Identity, Report, Telemetry
from qttdm.deploy.cluster.exporter_actor import NAME
from qttdm.deploy.configs.cluster_config import NAMESPACE

ANSWER_SECONDS = 10.0  # after which a report that was not taken is forgotten


class RaySender:
    """One report under way at a time."""

    def __init__(self) -> None:
        self._exporter: Any = None
        self._answer: ray.ObjectRef | None = None
        self._asked_at = float("-inf")

    def send(self, report: Report) -> bool:
        """As Sender: without waiting."""
        now = time.monotonic()
        if not ray.is_initialized() or not self._answered(now):
            return False
        if self._exporter is None:
            self._exporter = find_exporter()
        if self._exporter is None:
            return False
        self._answer, self._asked_at = self._exporter.report.remote(report.packed()), now
        return True

    def wait(self, seconds: float) -> None:
        """As Sender."""
        if self._answer is not None and ray.is_initialized():
            ray.wait([self._answer], timeout=seconds)

    def _answered(self, now: float) -> bool:
        """Is nothing under way? An exporter that failed or fell silent is looked for again."""
        if self._answer is None:
            return True
        if ray.wait([self._answer], timeout=0)[0]:
            try:
                ray.get(self._answer)
            except RayError:
                self._exporter = None
        elif now - self._asked_at > ANSWER_SECONDS:
            self._exporter = None
        else:
            return False
        self._answer = None
        return True


def find_exporter() -> Any:
    """The exporter's handle; None if there is none."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except (ValueError, RayError):
        return None


def reported(run: str, seed: int, task: str, component: Component, index: int = 0) -> Telemetry:
    """The telemetry of this process, an actor's or the driver's; it is reported from now on."""
    restarted = component != "driver" and ray.get_runtime_context().was_current_actor_reconstructed
    telemetry = Telemetry(Identity(run, str(seed), task, component, str(index)), restarted)
    report_process_use(telemetry)
    telemetry.reporter = Reporter(telemetry, RaySender())
    return telemetry


def report_end(run: str, seed: int, seconds: float = 2.0) -> None:
    """Tell the exporter, if there is one, that this seed's processes have ended in good order."""
    exporter = find_exporter()
    if exporter is not None:
        ray.wait([exporter.end.remote(run, str(seed))], timeout=seconds)
