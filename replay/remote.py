"""The shards as Ray actors, and a client that keeps batches coming while the learner computes.

    actors  --insert(record)-->  shard 0 .. S-1   (plain ReplayShard, one Ray actor each, restarted for ever)
    learner <--next()----------  RemoteReplay     (a few batches under way at any time)

An insert is answered when it is on disk. Ray sends it again if the shard dies before, and the shard knows an episode it
already has; so a kill loses and doubles nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError

from common.batch import Batch
from common.episode import Episode
from replay.client import Draw, merge, shard_of
from replay.codec import encode
from replay.news import News, StoredEpisode, Totals
from replay.samplers import Mass
from replay.shard import ReplayShard, ShardConfig, ShardStats

CPU_ONLY = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""Ray lets actors without a GPU share see all GPUs; a shard must not open a context on any."""


@dataclass(frozen=True)
class ReplaySettings:
    """What every shard is opened with."""

    config: ShardConfig
    obs_dim: int
    action_dim: int
    window: int
    discount: float


class ShardActor(ReplayShard):
    """A ReplayShard whose answers are bare arrays and numbers, which Ray passes on without pickling objects."""

    def draw(
        self, batch_size: int, returns: tuple[float, float] | None
    ) -> tuple[list[np.ndarray], float, tuple | None]:
        """`sample` as the arrays in Batch's order, and the mass after it."""
        batch, mass = self.sample(batch_size, returns), self.mass()
        return [getattr(batch, f.name) for f in fields(Batch)], mass.log_weight, mass.returns

    def weight(self) -> tuple[float, tuple | None]:
        """`mass` as numbers."""
        mass = self.mass()
        return mass.log_weight, mass.returns

    def tell(self, since: int) -> list[Any]:
        """`news` as nested lists of numbers."""
        news = self.news(since)
        return [[list(vars(e).values()) for e in news.episodes], news.cursor, list(vars(news.totals).values())]


def start_shards(name: str, directory: Path, settings: ReplaySettings, seed: int, shards: int) -> list[Any]:
    """Run S plain shards as Ray actors named `<name>/replay-<i>`; each opens `<directory>/shard-<i>` where it runs.
    Returns their handles.

    Inserts, draws and questions have threads of their own, so that none queues behind another.
    """
    options: dict[str, Any] = {
        "num_cpus": 1,
        "max_restarts": -1,
        "max_task_retries": -1,
        "concurrency_groups": {"insert": 1, "sample": 1, "control": 1},
        "runtime_env": CPU_ONLY,
    }
    actor = ray.remote(**options)(ShardActor)
    return [
        actor.options(name=f"{name}/replay-{i}").remote(
            directory / f"shard-{i}",
            settings.config,
            settings.obs_dim,
            settings.action_dim,
            settings.window,
            settings.discount,
            seed + i,
        )
        for i in range(shards)
    ]


class RemoteReplay:
    """Inserts into and samples from all shards as if they were one buffer."""

    def __init__(
        self, shards: list[Any], floor: float, seed: int, batch_size: int, prefetch: int, timeout_s: float
    ) -> None:
        """floor: ReplayConfig.return_floor. prefetch: batches under way ahead of the one asked for, >= 0.

        timeout_s: how long any single wait for a shard may take; a restart of one must fit.
        """
        self.shards, self.floor, self.batch_size = shards, floor, batch_size
        self.prefetch, self.timeout_s = prefetch, timeout_s
        self._rng = np.random.default_rng(seed)
        self._masses: list[Mass] = []
        self._under_way: deque[list[tuple[int, Any]]] = deque()

    def insert(self, episode: Episode) -> bool:
        """Store an episode, on disk when this returns; False if it was there already. TimeoutError after timeout_s."""
        shard = shard_of(episode.actor, episode.number, len(self.shards))
        answer = self.shards[shard].insert.options(concurrency_group="insert").remote(encode(episode))
        return bool(self._get([answer], f"replay shard {shard} to store an episode")[0])

    def next(self) -> Batch:
        """The next batch; ValueError if nothing is stored, TimeoutError after timeout_s without an answer."""
        if not self._masses:
            self._masses = self._ask_masses()
        while len(self._under_way) <= self.prefetch:
            self._under_way.append(self._request())
        asked = self._under_way.popleft()
        batches = []
        who = f"replay shards {[i for i, _ in asked]} for a batch"
        for (i, _), (arrays, *mass) in zip(asked, self._get([ref for _, ref in asked], who), strict=True):
            batches.append(Batch(*arrays))
            self._masses[i] = Mass(*mass)
        return merge(batches)

    def refresh(self) -> None:
        """Look at every shard's mass anew: those that were not drawn from lately may have grown."""
        self._masses = self._ask_masses()

    def news(self, cursors: Sequence[int]) -> list[News]:
        """What each shard has stored since its cursor (0, or that of its answer before); see ReplayShard.news."""
        answers = [
            shard.tell.options(concurrency_group="control").remote(cursor)
            for shard, cursor in zip(self.shards, cursors, strict=True)
        ]
        return [
            News([StoredEpisode(*e) for e in episodes], cursor, Totals(*totals))
            for episodes, cursor, totals in self._get(answers, "the replay shards' news")
        ]

    def stats(self) -> list[ShardStats]:
        """Where each shard stands."""
        return self._get([s.stats.options(concurrency_group="control").remote() for s in self.shards], "shards' stats")

    def _request(self) -> list[tuple[int, Any]]:
        """Ask for one batch: (shard, answer to come) of every shard that contributes."""
        draw = Draw.of(self._masses, self.floor, self.batch_size, self._rng)
        return [
            (i, self.shards[i].draw.options(concurrency_group="sample").remote(count, draw.returns))
            for i, count in enumerate(draw.counts)
            if count > 0
        ]

    def _ask_masses(self) -> list[Mass]:
        answers = [s.weight.options(concurrency_group="control").remote() for s in self.shards]
        return [Mass(*answer) for answer in self._get(answers, "the replay shards' masses")]

    def _get(self, answers: list[Any], what: str) -> list[Any]:
        try:
            return ray.get(answers, timeout=self.timeout_s)
        except GetTimeoutError:
            raise TimeoutError(f"waited {self.timeout_s:g} s for {what}") from None
