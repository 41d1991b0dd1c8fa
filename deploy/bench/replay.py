"""The replay's part of `make bench`: batches drawn and steps stored, as ratios to the plainest code in the same run.

    in one process   a ReplayShard   against   numpy rings, written and indexed
    through Ray      RemoteReplay    against   an actor around such rings: no disk, no checksum, no names, no masks

Inserts are durable: counted when they are on disk. Rounds of ours and of the other alternate; medians are given.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from qttdm.common.contracts import vector_data
from qttdm.common.episode import Episode
from qttdm.deploy.bench.timing import Compared, in_turns, rate
from qttdm.replay.buffer import ReplayConfig
from qttdm.replay.client import shard_of
from qttdm.replay.codec import encode
from qttdm.replay.remote import RemoteReplay, ReplaySettings, start_shards
from qttdm.replay.shard import ReplayShard, ShardConfig

OBS_DIM, ACTION_DIM = 39, 4  # Meta-World's
WINDOW, BATCH_SIZE = 20, 512
EPISODE = 250  # decisions: 500 simulator steps, action repeat 2
CAPACITY = 100_000
IN_FLIGHT = 4  # inserts sent at once, as four actors would, and batches ahead of the one asked for
DATA = vector_data(OBS_DIM, ACTION_DIM, WINDOW, discount=0.99)
ROUNDS, BATCHES, EPISODES = 15, 40, 100  # rounds; batches and episodes in each

SamplerName = Literal["uniform", "balanced"]
SAMPLERS: tuple[SamplerName, ...] = ("uniform", "balanced")
SHARDS = (1, 4)


class Rings:
    """What is compared with: arrays of Replay's sizes, written and indexed in the plainest way."""

    def __init__(self) -> None:
        self.arrays = [
            np.zeros((CAPACITY, OBS_DIM), np.float32),
            np.zeros((CAPACITY, ACTION_DIM), np.float32),
            np.zeros(CAPACITY, np.float32),
            np.zeros(CAPACITY, np.bool_),
            np.zeros(CAPACITY, np.bool_),
            np.zeros(CAPACITY, np.float32),
        ]  # as in Batch: of observations and actions, rewards, terminated, mask, returns-to-go
        for array in self.arrays:
            array[:] = 1  # or the memory would only be promised
        self.rng, self.at = np.random.default_rng(0), 0

    def sample(self) -> list[np.ndarray]:
        """Draw a batch's arrays."""
        starts = self.rng.integers(0, CAPACITY - WINDOW, BATCH_SIZE)
        rows = starts[:, None] + np.arange(WINDOW + 1)  # [B, L+1]
        places = rows[:, :-1]  # [B, L]
        return [array[places if i else rows] for i, array in enumerate(self.arrays)]

    def insert(self, episode: Episode) -> bool:
        """Store an episode; the observation after the last decision is dropped."""
        span = slice(self.at, self.at + len(episode.rewards))
        for array, values in zip(
            self.arrays, (episode.observations[:-1], episode.actions, episode.rewards), strict=False
        ):
            array[span] = values
        self.at = span.stop % (CAPACITY - EPISODE)
        return True


def random_episodes() -> Iterator[Episode]:
    """Make noise, for ever, each episode with a name of its own."""
    rng = np.random.default_rng(0)
    episode = Episode(
        observations=rng.standard_normal((EPISODE + 1, OBS_DIM), np.float32),
        actions=rng.uniform(-1, 1, (EPISODE, ACTION_DIM)).astype(np.float32),
        rewards=rng.standard_normal(EPISODE, np.float32),
        terminated=False,
        env_steps=2 * EPISODE,
    )
    for number in count():
        yield replace(episode, number=number)


def shard_config(sampler: SamplerName) -> ShardConfig:
    """Make the default, durable, with that sampler."""
    return ShardConfig(replay=ReplayConfig(capacity=CAPACITY, sampler=sampler))


def compare(
    insert: Callable[[Episode], Any],
    insert_plain: Callable[[Episode], Any],
    sample: Callable[[], object],
    sample_plain: Callable[[], object],
    wait: Callable[[Any], bool],
) -> tuple[Compared, Compared]:
    """Compare steps stored per second until the replay is full, and then batches drawn per second.

    wait: for what an insert returns, until the episode is stored.
    """
    episodes = random_episodes()

    def stored(insert: Callable[[Episode], Any]) -> float:
        batch = list(islice(episodes, EPISODES))
        return EPISODE * EPISODES * rate(lambda: insert_all(insert, batch, wait), 1)

    rounds = max(ROUNDS, CAPACITY // EPISODE // EPISODES)
    steps = in_turns(lambda: stored(insert), lambda: stored(insert_plain), rounds)
    return steps, in_turns(lambda: rate(sample, BATCHES), lambda: rate(sample_plain, BATCHES), ROUNDS)


def insert_all(insert: Callable[[Episode], Any], episodes: list[Episode], wait: Callable[[Any], bool]) -> None:
    """Insert episodes, IN_FLIGHT at once, until the last is stored."""
    under_way = deque[Any]()
    for episode in episodes:
        if len(under_way) == IN_FLIGHT:
            assert wait(under_way.popleft())
        under_way.append(insert(episode))
    assert all(map(wait, under_way))


def in_one_process(sampler: SamplerName, directory: Path) -> tuple[Compared, Compared]:
    """Compare one shard with plain rings."""
    rings = Rings()
    with closing(ReplayShard(directory, shard_config(sampler), DATA, seed=0)) as shard:
        return compare(
            lambda episode: shard.insert(encode(episode)),
            rings.insert,
            lambda: shard.sample(BATCH_SIZE),
            rings.sample,
            wait=bool,
        )


def through_ray(sampler: SamplerName, shards: int, directory: Path) -> tuple[Compared, Compared]:
    """Compare all shards together with one plain actor. Needs a Ray that runs; leaves nothing in it."""
    settings = ReplaySettings(shard_config(sampler), DATA)
    actors = start_shards(f"bench-{sampler}-{shards}", directory, settings, 0, shards)
    plain: Any = ray.remote(Rings).options(num_cpus=1).remote()
    replay = RemoteReplay(actors, 0, BATCH_SIZE, prefetch=IN_FLIGHT, timeout_s=120)
    under_way = deque([plain.sample.remote() for _ in range(IN_FLIGHT)])

    def insert(episode: Episode) -> Any:
        shard = actors[shard_of(episode.actor, episode.number, shards)]
        return shard.insert.options(concurrency_group="insert").remote(encode(episode))

    def next_plain() -> list[np.ndarray]:
        under_way.append(plain.sample.remote())
        return ray.get(under_way.popleft())

    try:
        return compare(insert, plain.insert.remote, replay.next, next_plain, wait=ray.get)
    finally:
        for actor in [*actors, plain]:
            ray.kill(actor)


def print_row(name: str, sampler: SamplerName, compared: tuple[Compared, Compared]) -> None:
    """Print what was stored and drawn per second."""
    numbers = "".join(f"{c.ours:12,.0f}{c.other:12,.0f}{c.ratio:8.2f}" for c in compared)
    print(f"{name:24}{sampler:10}{numbers}", flush=True)


def print_replay() -> None:
    """Print the table; starts a Ray of its own for its second half."""
    shape = f"observation {OBS_DIM}, action {ACTION_DIM}, {BATCH_SIZE} windows of {WINDOW}, episodes of {EPISODE}"
    print(f"\nreplay: {shape}; medians of {ROUNDS} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'':34}{'steps/s':>12}{'plain':>12}{'ratio':>8}{'batches/s':>12}{'plain':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for sampler in SAMPLERS:
            print_row("in one process", sampler, in_one_process(sampler, Path(folder) / sampler))
        os.environ["RAY_AUTH_MODE"] = "disabled"  # or a local Ray leaves a token in the user's home
        one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=one_thread)
        try:
            for shards in SHARDS:
                for sampler in SAMPLERS:
                    directory = Path(folder) / f"{sampler}-{shards}"
                    print_row(f"through Ray, shards: {shards}", sampler, through_ray(sampler, shards, directory))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    print_replay()
