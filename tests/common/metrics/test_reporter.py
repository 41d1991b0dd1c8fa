"""Reports go out by themselves, are dropped when nobody takes them, and never disturb the process."""

from __future__ import annotations

import threading
import time

import qttdm.actors.measured
import qttdm.common.metrics.reporter
from qttdm.common.metrics.process import report_process_use
from qttdm.common.metrics.reporter import Reporter
from qttdm.common.metrics.telemetry import Identity, Report, Telemetry


def actor() -> Telemetry:
    return Telemetry(Identity("run", "0", "dmc/walker-walk", "actor"))


class Desk:
    """Takes reports, or does not."""

    def __init__(self, takes: bool = True, error: Exception | None = None) -> None:
        self.takes, self.error = takes, error
        self.reports: list[Report] = []
        self.waits: list[float] = []
        self.came = threading.Event()

    def __call__(self, report: Report, seconds: float) -> bool:
        self.reports.append(report)
        self.waits.append(seconds)
        self.came.set()
        if self.error:
            raise self.error
        return self.takes


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_reports_come_by_themselves_and_with_the_newest_values():
    t, desk = actor(), Desk()
    report_process_use(t)
    reporter = Reporter(t, desk, every=0.01)
    t.inc("qttdm_acted_total", 7)
    until(lambda: desk.reports and desk.reports[-1].snapshot["qttdm_acted_total", ""] == 7)
    until(lambda: len(desk.reports) >= 3)
    last = desk.reports[-1].snapshot
    assert last["qttdm_process_resident_bytes", ""] > 1e6
    assert last["qttdm_process_cpu_seconds_total", ""] > 0
    reporter.close()
    count = len(desk.reports)
    time.sleep(0.05)
    assert len(desk.reports) <= count + 1  # one may have been under way
    assert [r.number for r in desk.reports] == list(range(1, len(desk.reports) + 1))


def test_whatever_goes_wrong_is_said_once_and_the_reporter_goes_on(capfd):
    t, desk = actor(), Desk(error=RuntimeError("the network is on fire"))
    t.before_report(lambda: 1 / 0)
    reporter = Reporter(t, desk, every=0.01)
    until(lambda: len(desk.reports) >= 3)
    reporter.close(seconds=0.1)
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert "ZeroDivisionError" in err


def test_flush_sends_what_there_is_and_waits_for_it_but_not_for_ever():
    t, desk = actor(), Desk()
    reporter = Reporter(t, desk, every=1000)
    until(desk.came.is_set)
    t.inc("qttdm_acted_total", 3)
    reporter.flush(seconds=1.0)
    assert desk.reports[-1].snapshot["qttdm_acted_total", ""] == 3
    assert 0 < desk.waits[-1] <= 1.0
    reporter.close()


def test_flush_tries_until_it_is_taken_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(qttdm.common.metrics.reporter, "RETRY_EVERY", 0.01)
    t, desk = actor(), Desk(takes=False)
    reporter = Reporter(t, desk, every=1000)
    until(desk.came.is_set)
    reporter.flush(seconds=1.0)
    assert len(desk.reports) > 2
    threading.Timer(0.2, lambda: setattr(desk, "takes", True)).start()
    reporter.flush(seconds=30.0)
    assert desk.takes
    count = len(desk.reports)
    reporter.close()
    assert len(desk.reports) == count + 1
