"""Report what a process uses: processors, memory, disk; declare what any process counts: failures, open calls."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from qttdm.common.metrics.instruments import PROCESSES, counter, gauge
from qttdm.common.metrics.telemetry import Telemetry

CPU = counter("qttdm_process_cpu_seconds_total", PROCESSES, "s", "processor time, user and system")
MEMORY = gauge("qttdm_process_resident_bytes", PROCESSES, "bytes", "memory, shared memory included")
DISK_FREE = gauge("qttdm_disk_free_bytes", ("learner", "replay"), "bytes", "on the file system that holds the run")
DISK_SIZE = gauge("qttdm_disk_size_bytes", ("learner", "replay"), "bytes", "of that file system")
FAILURES = counter(
    "qttdm_failures_total",
    ("driver", "learner", "actor", "evaluator", "planner"),
    "failures",
    "environment: one failed and was replaced; hung: this process follows one that hung; timeout: another did not "
    "answer in time; unresponsive: gave no sign of life and was killed; non_finite: a loss was not a number; seed: a "
    "seed was given up",
    "kind",
    ("environment", "hung", "timeout", "unresponsive", "non_finite", "seed"),
)
CALLS = gauge(
    "qttdm_calls_in_flight",
    ("learner", "driver", "actor"),
    "calls",
    "not answered yet: requests for batches, evaluations, weights sent, signs of life, inserts",
    "call",
    ("batches", "evaluations", "weights", "heartbeats", "inserts"),
)


def report_process_use(telemetry: Telemetry) -> None:
    """Report this process's use of processor and memory."""

    def report_use() -> None:
        telemetry.count_to(CPU, time.process_time())
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        telemetry.set(MEMORY, resident * os.sysconf("SC_PAGE_SIZE"))

    telemetry.before_report(report_use)


def report_disk(telemetry: Telemetry, directory: Path) -> None:
    """Set how much of that directory's disk is free."""
    disk = shutil.disk_usage(directory)
    telemetry.set(DISK_FREE, disk.free)
    telemetry.set(DISK_SIZE, disk.total)
