"""Send what a process measures every two seconds, from a thread of its own that never delays the process.

    Telemetry --Report--> Reporter --send--> exporter     (over Ray: deploy/cluster/reporting.py)

One report is under way at most. While there is nobody to send to, or the last one was not taken yet, a report is
dropped: the next one says all that it said.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Protocol

from qttdm.common.metrics.telemetry import Report, Telemetry

REPORT_EVERY = 2.0  # seconds
TRY_EVERY = 0.2  # seconds, before a process ends


class Sender(Protocol):
    """How reports get to where they are served."""

    def send(self, report: Report) -> bool:
        """Send without waiting for an answer; False if that is impossible now."""

    def wait(self, seconds: float) -> None:
        """Wait until the last report is answered, but no longer than that."""


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

        An exporter may be restarting: until it is back it is tried again.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.sender.wait(left)  # for the one under way
            if self._report():
                break
            time.sleep(TRY_EVERY)
        self.sender.wait(max(0.0, deadline - time.monotonic()))

    def close(self, seconds: float = 10.0) -> None:
        """Send a last report, and no more."""
        self._stop.set()
        self.flush(seconds)

    def _run(self) -> None:
        while True:
            self._report()
            if self._stop.wait(self.every):
                return

    def _report(self) -> bool:
        """Was it sent? The first error is printed, none is raised: to measure must not end the component."""
        with self._one_at_a_time:
            try:
                return self.sender.send(self.telemetry.report(self._complain))
            except Exception as error:
                self._complain(error)
                return False

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            print(f"reporting metrics: {''.join(traceback.format_exception(error))}", file=sys.stderr, flush=True)
