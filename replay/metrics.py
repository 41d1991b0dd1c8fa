"""A shard's metrics."""

from __future__ import annotations

from pathlib import Path

from qttdm.common.metrics.instruments import QUICK, gauge, histogram
from qttdm.common.metrics.process import report_disk
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.replay.shard import ReplayShard

INSERT_SECONDS = histogram(
    "qttdm_replay_insert_seconds", ("replay",), "s", "storing an episode, on disk at the end", QUICK
)
SAMPLE_SECONDS = histogram(
    "qttdm_replay_sample_seconds", ("replay",), "s", "drawing this shard's part of a request", QUICK
)
DECISIONS = gauge("qttdm_replay_decisions", ("replay",), "decisions", "stored now")
CAPACITY = gauge("qttdm_replay_capacity_decisions", ("replay",), "decisions", "that it can store")
DISK = gauge("qttdm_replay_disk_bytes", ("replay",), "bytes", "size of its log")


def report_sizes(shard: ReplayShard, directory: Path, telemetry: Telemetry) -> None:
    """Report the shard's sizes, and the disk of its directory, with each report from now on."""

    def report() -> None:
        telemetry.set(DECISIONS, shard.decisions)
        telemetry.set(CAPACITY, shard.config.replay.capacity)
        telemetry.set(DISK, shard.bytes_on_disk)
        report_disk(telemetry, directory)

    telemetry.before_report(report)
