"""Send what a process measures every two seconds, from a thread of its own that never delays the process.

    Telemetry --Report--> Reporter --send--> exporter     (over Ray: deploy/cluster/reporting.py)

A report that cannot be sent, or is not taken in time, is dropped: the next one says all that it said.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

from qttdm.common.metrics.telemetry import Report, Telemetry

REPORT_EVERY = 2.0  # seconds
RETRY_EVERY = 0.2  # seconds, before a process ends
ANSWER_SECONDS = 10.0  # for a report to be taken

Send = Callable[[Report, float], bool]
"""Send a report and wait until it is taken, at most so many seconds. False if that was not possible."""


class Reporter:
    """Report until the process ends, or `close`."""

    def __init__(self, telemetry: Telemetry, send: Send, every: float = REPORT_EVERY) -> None:
        self.telemetry, self.send, self.every = telemetry, send, every
        self._stop = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._complained = False
        threading.Thread(target=self._run, name="reporter", daemon=True).start()

    def flush(self, seconds: float = ANSWER_SECONDS) -> None:
        """Report now and wait until it has arrived, but no longer than that: for a process about to end.

        An exporter may be restarting: until it is back, sending is tried again.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._report(left):
            time.sleep(RETRY_EVERY)

    def close(self, seconds: float = ANSWER_SECONDS) -> None:
        """Send a last report, and no more."""
        self._stop.set()
        self.flush(seconds)

    def _run(self) -> None:
        self._report(ANSWER_SECONDS)
        while not self._stop.wait(self.every):
            self._report(ANSWER_SECONDS)

    def _report(self, seconds: float) -> bool:
        """Was it sent? The first error is printed, none is raised: to measure must not end the component."""
        if not self._one_at_a_time.acquire(timeout=seconds):
            return False
        try:
            return self.send(self.telemetry.report(self._complain), seconds)
        except Exception as error:
            self._complain(error)
            return False
        finally:
            self._one_at_a_time.release()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            print(f"reporting metrics: {''.join(traceback.format_exception(error))}", file=sys.stderr, flush=True)
