"""What is told of a shard to Prometheus; insert and sample times are measured where they are spent (remote.py)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from qttdm.common.metrics.telemetry import Telemetry
from qttdm.replay.shard import ShardStats


class Stored(Protocol):
    """What a shard, or a replay in memory, says of itself."""

    def stats(self) -> ShardStats:
        """Where it stands; never waits."""


def watch(replay: Stored, directory: Path | None, telemetry: Telemetry) -> None:
    """Have it looked at before each report. directory: where its log is."""

    def look() -> None:
        s = replay.stats()
        telemetry.count_to("qttdm_replay_inserted_episodes_total", s.inserted_episodes)
        telemetry.count_to("qttdm_replay_inserted_decisions_total", s.inserted_decisions)
        telemetry.count_to("qttdm_replay_inserted_env_steps_total", s.inserted_env_steps)
        telemetry.count_to("qttdm_replay_duplicates_total", s.duplicates)
        telemetry.count_to("qttdm_replay_damaged_records_total", s.dropped_records)
        telemetry.count_to("qttdm_replay_sampled_batches_total", s.sampled_batches)
        telemetry.set("qttdm_replay_decisions", s.decisions)
        telemetry.set("qttdm_replay_episodes", s.episodes)
        telemetry.set("qttdm_replay_fill_ratio", s.fill)
        telemetry.set("qttdm_replay_capacity_decisions", s.capacity)
        telemetry.set("qttdm_replay_sampled_age_decisions", s.sampled_age)
        if directory is not None:
            telemetry.set("qttdm_replay_disk_bytes", s.bytes_on_disk)
            disk = shutil.disk_usage(directory)
            telemetry.set("qttdm_disk_free_bytes", disk.free)
            telemetry.set("qttdm_disk_size_bytes", disk.total)

    telemetry.before_report(look)
