"""The shards as Ray actors, and a client that keeps batches coming while the learner computes.

    actors  --insert(record)-->  shard 0 .. S-1   (plain ReplayShard, one Ray actor each, restarted for ever)
    learner <--next()----------  RemoteReplay     (a few batches under way at any time)

An insert is answered when it is on disk. Ray sends it again if the shard dies before, and the shard knows an episode it
already has; so a kill loses and doubles nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError

from qttdm.common.batch import Batch
from qttdm.common.contracts import DataSpec
from qttdm.common.episode import Episode
from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.replay.client import counts, merge, shard_of
from qttdm.replay.codec import encode
from qttdm.replay.feed import EpisodePage
from qttdm.replay.metrics import INSERT_SECONDS, SAMPLE_SECONDS, report_sizes
from qttdm.replay.shard import ReplayShard, ShardConfig

CPU_ONLY = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""Ray lets actors without a GPU share see all GPUs; a shard must not open a context on any."""
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""bytes; glibc keeps the freed arrays of a batch for the next one. Unset, it gives them back to the system, and asking
for them page by page takes a fifth of a shard's time."""


@dataclass(frozen=True)
class ReplaySettings:
    """What every shard is opened with."""

    config: ShardConfig
    data: DataSpec
    telemetry: MakeTelemetry = Telemetry.silent


class ShardActor(ReplayShard):
    """A ReplayShard that reports its metrics, and draws its part of several batches at once."""

    def __init__(self, directory: Path, settings: ReplaySettings, seed: int, index: int) -> None:
        """Shard number `index`, in the directory."""
        self.telemetry = settings.telemetry("replay", index)
        super().__init__(directory, settings.config, settings.data, seed)
        report_sizes(self, directory, self.telemetry)

    def insert(self, record: bytes) -> bool:
        """As ReplayShard."""
        with self.telemetry.timed(INSERT_SECONDS):
            return super().insert(record)

    def draw(self, counts: list[int]) -> tuple[list[Batch], float]:
        """Draw a `sample` for each count (an empty batch for 0 windows), and the mass after it."""
        with self.telemetry.timed(SAMPLE_SECONDS):
            parts = [self.sample(count) if count else {} for count in counts]
        return parts, self.mass()

    def fill(self) -> float:
        """Return stored decisions as a fraction of the capacity; never waits."""
        return self.decisions / self.config.replay.capacity

    def flush(self) -> None:
        """Send the last report, at the end of a run."""
        self.telemetry.flush()


def start_shards(
    name: str, directory: Path, settings: ReplaySettings, seed: int, shards: int, **options: Any
) -> list[Any]:
    """Run S plain shards as Ray actors named `<name>/replay-<i>`; each opens `<directory>/shard-<i>` where it runs.

    Inserts, draws and questions have threads of their own, so that none queues behind another; concurrent inserts
    share a flush (`fsync: always`). options: Ray's, for every shard, such as scheduling_strategy, namespace, num_cpus.
    Returns their handles.
    """
    defaults: dict[str, Any] = {
        "concurrency_groups": {"insert": 4, "sample": 1, "control": 1},
        "num_cpus": 1,
        "max_restarts": -1,
        "max_task_retries": -1,
        "runtime_env": {"env_vars": CPU_ONLY["env_vars"] | KEEP_MEMORY},
    }
    actor = ray.remote(**(defaults | options))(ShardActor)
    return [
        actor.options(name=f"{name}/replay-{i}").remote(directory / f"shard-{i}", settings, seed + i, i)
        for i in range(shards)
    ]


class RemoteReplay:
    """Inserts into and samples from all shards as if they were one buffer. For one thread.

    Every request goes to every shard, also to those that it takes no windows from: the answers bring their masses. So
    what a batch is drawn by is as old as the batches under way, whichever shards have grown meanwhile.

    Choice: a request brings several batches. Why: every object in Ray's store costs about 1.5 ms on two cores, some
    three times as long as drawing 512 windows of 20 steps. What would change it: a cheaper store.
    """

    def __init__(
        self,
        shards: list[Any],
        seed: int,
        batch_size: int,
        prefetch: int,
        timeout_s: float,
        per_request: int = 4,
    ) -> None:
        """prefetch: batches under way ahead of the one asked for, >= 0, rounded up to whole requests of `per_request`.

        timeout_s: how long any single wait for a shard may take; a restart of one must fit.
        """
        assert per_request > 0, per_request
        self.shards, self.batch_size = shards, batch_size
        self.prefetch, self.timeout_s, self.per_request = prefetch, timeout_s, per_request
        self._rng = np.random.default_rng(seed)
        self._masses = [-math.inf] * len(shards)
        self._under_way: deque[list[Any]] = deque()  # for each request, the answers to come of all shards
        self._arrived: deque[list[Batch]] = deque()  # for each batch, its parts, in the object store

    def insert(self, episode: Episode) -> bool:
        """Store an episode, on disk when this returns; False if it was there already. TimeoutError after timeout_s."""
        shard = shard_of(episode.actor, episode.number, len(self.shards))
        answer = self.shards[shard].insert.options(concurrency_group="insert").remote(encode(episode))
        return bool(self._get([answer], f"replay shard {shard} to store an episode")[0])

    def next(self) -> Batch:
        """Return the next batch, as arrays of its own; ValueError if nothing is stored.

        TimeoutError after timeout_s without an answer: the batch stays under way, and the next call waits on for it.
        """
        while len(self._arrived) + self.per_request * len(self._under_way) <= self.prefetch:
            self._under_way.append(self._request())
        if not self._arrived:
            answers = self._get(self._under_way[0], "the replay shards for a batch")
            self._under_way.popleft()
            self._masses = [mass for _, mass in answers]
            for parts in zip(*(drawn for drawn, _ in answers), strict=True):  # of one batch
                self._arrived.append([part for part in parts if part])
        return merge(self._arrived.popleft())

    @property
    def under_way(self) -> int:
        """Batches asked for that have not come yet."""
        return self.per_request * len(self._under_way)

    def close(self) -> None:
        """Drop the batches under way, and free their memory in the object store."""
        self._under_way.clear()
        self._arrived.clear()
        self._masses = [-math.inf] * len(self.shards)

    def episodes_since(self, cursors: Sequence[int]) -> list[EpisodePage]:
        """Return each shard's page from its cursor on (0, or that of the page before)."""
        answers = [
            shard.episodes_since.options(concurrency_group="control").remote(cursor)
            for shard, cursor in zip(self.shards, cursors, strict=True)
        ]
        return self._get(answers, "the replay shards' new episodes")

    def save(self) -> dict[str, bytes]:
        """As ReplaySource; a run that is resumed on one machine goes back to it."""
        answers = [shard.save_state.options(concurrency_group="insert").remote() for shard in self.shards]
        states = self._get(answers, "the replay shards to save their states")
        return {f"replay-{i}": state for i, state in enumerate(states)}

    def load(self, blobs: Mapping[str, bytes]) -> None:
        """Keep the episodes stored since the checkpoint: their actors go on."""

    def _request(self) -> list[Any]:
        """Ask every shard for its part of some batches."""
        if all(mass == -math.inf for mass in self._masses):
            answers = [s.mass.options(concurrency_group="control").remote() for s in self.shards]
            self._masses = self._get(answers, "the replay shards' masses")
        shares = counts(self._masses, self.batch_size, self.per_request, self._rng)
        return [
            shard.draw.options(concurrency_group="sample").remote(share)
            for shard, share in zip(self.shards, shares, strict=True)
        ]

    def _get(self, answers: list[Any], what: str) -> list[Any]:
        try:
            return ray.get(answers, timeout=self.timeout_s)
        except GetTimeoutError:
            raise TimeoutError(f"waited {self.timeout_s:g} s for {what}") from None
