"""Metrics of one process, measured when Prometheus asks: no thread, and no port of its own."""

from __future__ import annotations

import sys

from prometheus_client import CollectorRegistry, generate_latest

from qttdm.common.metrics.process import report_process_use
from qttdm.common.metrics.telemetry import Identity, Telemetry
from qttdm.deploy.monitoring.exporter import Exporter


class Scrape:
    """A planner's telemetry, as text for Prometheus."""

    def __init__(self, run: str, seed: int, task: str) -> None:
        self.telemetry = Telemetry(Identity(run, str(seed), task, "planner"))
        report_process_use(self.telemetry)
        self._exporter, self._registry = Exporter(), CollectorRegistry()
        self._registry.register(self._exporter)

    def text(self) -> bytes:
        """Measure now; one call at a time. A measurement that fails is printed, the others are served."""
        self._exporter.report(self.telemetry.report(lambda error: print(f"metrics: {error}", file=sys.stderr)).packed())
        return generate_latest(self._registry)
