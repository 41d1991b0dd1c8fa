"""Export the metrics of a process without a cluster: its parts are measured when Prometheus asks.

LocalRun, PlannerService --Telemetry--> LocalExporter --/metrics--> Prometheus
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import Metric

from qttdm.common.metrics.instruments import Component
from qttdm.common.metrics.process import report_process_use
from qttdm.common.metrics.telemetry import Identity, MakeTelemetry, Telemetry
from qttdm.deploy.monitoring.exporter import Exporter


class LocalExporter(Exporter):
    """An exporter in this process, of the parts of one run."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[Telemetry] = []
        self._one_at_a_time = threading.Lock()

    def of_run(self, run: str, seed: int, task: str, state: Path | None = None) -> MakeTelemetry:
        """Return what makes the telemetry of a run's parts in this process; `state` as for Exporter."""
        if state is not None:
            self.keep_in(state)
        return partial(self._make, run, seed, task)

    def _make(self, run: str, seed: int, task: str, component: Component, index: int = 0) -> Telemetry:
        telemetry = Telemetry(Identity(run, str(seed), task, component, str(index)))
        if component in ("driver", "planner"):  # a run has the one, a service the other: memory counts once
            report_process_use(telemetry)
        self._parts.append(telemetry)
        return telemetry

    def collect(self) -> Iterator[Metric]:
        """Measure now, then as Exporter. The first error of a measurement is printed; the others are served."""
        with self._one_at_a_time:
            for part in self._parts:
                self.report(part.report(self._explain).packed())
        yield from super().collect()

    def _explain(self, error: Exception) -> None:
        self._complain("a measurement", "".join(traceback.format_exception(error)))

    def text(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self)

    def close(self) -> None:
        """Measure a last time, for what is kept on disk."""
        self.text()
