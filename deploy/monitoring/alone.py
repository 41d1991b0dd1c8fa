"""Metrics of a process without a cluster: it reports to an exporter of its own.

    LocalRun --Telemetry--> Alone: Exporter --/metrics--> Prometheus

What was counted is kept in the run's directory, so that a resumed run counts on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qttdm.common.metrics.instruments import Component
from qttdm.common.metrics.process import measure_process
from qttdm.common.metrics.reporter import Reporter
from qttdm.common.metrics.telemetry import Boot, Identity, MakeTelemetry, Report, Telemetry
from qttdm.deploy.monitoring.exporter import Exporter, serve


class Alone:
    """An exporter in this process; a Sender to it."""

    def __init__(self, host: str, port: int) -> None:
        """Serve from now on. ConfigError, one line, if the port is taken."""
        self.exporter, self.boot = Exporter(), Boot.now()
        self._reporters: list[Reporter] = []
        self._server, _ = serve(self.exporter, host, port)

    def of_run(self, run: str, seed: int, task: str, state: Path | None = None) -> MakeTelemetry:
        """Make telemetry for the parts of a run in this process; `state` as for Exporter."""
        if state is not None:
            self.exporter.keep_in(state)
        return partial(self._make, run, seed, task)

    def _make(self, run: str, seed: int, task: str, component: Component, index: int = 0) -> Telemetry:
        telemetry = Telemetry(Identity(run, str(seed), task, component, str(index)), self.boot)
        if component == "driver":  # memory counts once
            measure_process(telemetry)
        telemetry.reporter = Reporter(telemetry, self)
        self._reporters.append(telemetry.reporter)
        return telemetry

    def close(self) -> None:
        """Send the last reports and stop serving."""
        for reporter in self._reporters:
            reporter.close()
        self._server.shutdown()
        self._server.server_close()

    def send(self, report: Report) -> bool:
        """As Sender."""
        self.exporter.report(report.packed())
        return True

    def wait(self, seconds: float) -> None:
        """As Sender: nothing is ever under way."""
