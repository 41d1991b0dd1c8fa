"""A shard's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qttdm.common.metrics.instruments import QUICK, gauge, histogram
from qttdm.common.metrics.process import report_disk
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.replay.shard import ShardStats

INSERT_SECONDS = histogram(
    "qttdm_replay_insert_seconds", ("replay",), "s", "storing an episode, on disk at the end", QUICK
)
SAMPLE_SECONDS = histogram(
    "qttdm_replay_sample_seconds", ("replay",), "s", "drawing this shard's part of a request", QUICK
)
DECISIONS = gauge("qttdm_replay_decisions", ("replay",), "decisions", "stored now")
CAPACITY = gauge("qttdm_replay_capacity_decisions", ("replay",), "decisions", "that it can store")
DISK = gauge("qttdm_replay_disk_bytes", ("replay",), "bytes", "size of its log")


class Stored(Protocol):
    """A shard, or a replay in memory."""

    def stats(self) -> ShardStats:
        """Where it stands; never waits."""


def report_shard(replay: Stored, directory: Path | None, telemetry: Telemetry) -> None:
    """Report its sizes. directory: where its log is; None: it has none."""

    def report_sizes() -> None:
        stats = replay.stats()
        telemetry.set(DECISIONS, stats.decisions)
        telemetry.set(CAPACITY, stats.capacity)
        if directory is not None:
            telemetry.set(DISK, stats.bytes_on_disk)
            report_disk(telemetry, directory)

    telemetry.before_report(report_sizes)
