"""Sends what a process measures, every two seconds, from a thread of its own; the process does not notice.

    Telemetry --Report--> Reporter --send--> whoever serves it     (over Ray: deploy/cluster/reporting.py)

One report is under way at most. While there is nobody to send to, or the last one was not taken yet, a report is
dropped and counted: the next one says all that it said.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Protocol

from qttdm.common.metrics.telemetry import Report, Telemetry

REPORT_EVERY = 2.0  # seconds
TRY_EVERY = 0.2  # seconds, before a process ends


class Sender(Protocol):
    """How reports get to where they are served."""

    def send(self, report: Report) -> bool:
        """Without waiting for an answer; False if it cannot be sent now."""

    def wait(self, seconds: float) -> None:
        """Until the last report is answered, but no longer than that."""


class Reporter:
    """Reports until the process ends, or `close`."""

    def __init__(self, telemetry: Telemetry, sender: Sender, every: float = REPORT_EVERY) -> None:
        self.telemetry, self.sender, self.every = telemetry, sender, every
        self._stop = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def flush(self, seconds: float = 10.0) -> None:
        """Report now, and wait until it has arrived, but no longer than that: for a process about to end.

        Whoever serves it may be on its way back: until then it is tried again.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.sender.wait(left)  # for the one under way
            if self._report():
                break
            time.sleep(TRY_EVERY)
        self.sender.wait(max(0.0, deadline - time.monotonic()))

    def close(self, seconds: float = 10.0) -> None:
        """A last report, and no more."""
        self._stop.set()
        self.flush(seconds)

    def _run(self) -> None:
        while True:
            self._report()
            if self._stop.wait(self.every):
                return

    def _report(self) -> bool:
        """Was it sent? Whatever goes wrong is counted and printed once: to measure must not end the component."""
        started = time.thread_time()
        with self._one_at_a_time:
            try:
                sent = self.sender.send(self.telemetry.report(self._complain))
            except Exception as error:
                self._complain(error)
                sent = False
            self.telemetry.inc("qttdm_reports_total", result="sent" if sent else "dropped")
            self.telemetry.inc("qttdm_reporting_seconds_total", time.thread_time() - started)
            return sent

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            print(f"reporting metrics: {''.join(traceback.format_exception(error))}", file=sys.stderr, flush=True)


def measure_process(telemetry: Telemetry) -> None:
    """Have this process's own use of processor and memory reported."""

    def look() -> None:
        telemetry.count_to("qttdm_process_cpu_seconds_total", time.process_time())
        telemetry.set("qttdm_process_start_time_seconds", telemetry.started)
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        telemetry.set("qttdm_process_resident_bytes", resident * os.sysconf("SC_PAGE_SIZE"))

    telemetry.before_report(look)
