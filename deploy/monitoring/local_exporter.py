"""Serve the metrics of a process without a cluster: its parts report to an exporter of its own.

    LocalRun --Telemetry--> LocalExporter --/metrics--> Prometheus

What was counted is kept in the run's directory, so that a resumed run counts on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qttdm.common.metrics.instruments import Component
from qttdm.common.metrics.process import report_process_use
from qttdm.common.metrics.reporter import Reporter
from qttdm.common.metrics.telemetry import Identity, MakeTelemetry, Report, Telemetry
from qttdm.deploy.monitoring.exporter import Exporter, serve


class LocalExporter:
    """An exporter in this process, of the parts of one run."""

    def __init__(self, host: str, port: int) -> None:
        """Serve from now on. ConfigError, one line, if the port is taken."""
        self.exporter = Exporter()
        self._reporters: list[Reporter] = []
        self._server, _ = serve(self.exporter, host, port)

    def of_run(self, run: str, seed: int, task: str, state: Path | None = None) -> MakeTelemetry:
        """Return what makes the telemetry of a run's parts in this process; `state` as for Exporter."""
        if state is not None:
            self.exporter.keep_in(state)
        return partial(self._make, run, seed, task)

    def _make(self, run: str, seed: int, task: str, component: Component, index: int = 0) -> Telemetry:
        telemetry = Telemetry(Identity(run, str(seed), task, component, str(index)))
        if component == "driver":  # memory counts once
            report_process_use(telemetry)
        telemetry.reporter = Reporter(telemetry, self._take)
        self._reporters.append(telemetry.reporter)
        return telemetry

    def _take(self, report: Report, seconds: float) -> bool:
        self.exporter.report(report.packed())
        return True

    def close(self) -> None:
        """Send the last reports and stop serving."""
        for reporter in self._reporters:
            reporter.close()
        self._server.shutdown()
        self._server.server_close()
