"""The replay's part of `make bench`: windows drawn and steps stored, as ratios to the plainest code in the same run.

    in one process   a ReplayShard   against   numpy's fancy indexing of as many bytes
    through Ray      RemoteReplay    against   an actor around numpy rings: no disk, no checksum, no names, no masks

Inserts are durable: counted when they are on disk. Rounds of ours and of the other alternate, and medians over rounds
are given, of the ratios too: whatever else the machine does then meets both.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from qttdm.common.contracts import vector_data
from qttdm.common.episode import Episode
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
UPDATES = (1.0, 0.1, 0.02, 0.01)  # seconds: from this benchmark's shapes on two cores to an H100's
WAITS = 50  # updates of each

SamplerName = Literal["uniform", "balanced"]
SAMPLERS: list[SamplerName] = ["uniform", "balanced"]


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    rounds: int = 15
    batches: int = 40
    """in a round"""
    episodes: int = 100
    """in a round"""


@dataclass(frozen=True)
class Compared:
    """Medians over rounds, per second."""

    ours: float
    other: float
    ratio: float


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
        """A batch's arrays."""
        starts = self.rng.integers(0, CAPACITY - WINDOW, BATCH_SIZE)
        rows = starts[:, None] + np.arange(WINDOW + 1)  # [B, L+1]
        places = rows[:, :-1]  # [B, L]
        return [array[places if i else rows] for i, array in enumerate(self.arrays)]

    def insert(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> bool:
        """An episode; the observation after the last decision is dropped."""
        span = slice(self.at, self.at + len(rewards))
        for array, values in zip(self.arrays, (observations[:-1], actions, rewards), strict=False):
            array[span] = values
        self.at = span.stop % (CAPACITY - EPISODE)
        return True


def random_episodes() -> Iterator[Episode]:
    """Noise, for ever, each episode with a name of its own."""
    rng = np.random.default_rng(0)
    episode = Episode(
        observations=rng.standard_normal((EPISODE + 1, OBS_DIM), np.float32),
        actions=rng.uniform(-1, 1, (EPISODE, ACTION_DIM)).astype(np.float32),
        rewards=rng.standard_normal(EPISODE, np.float32),
        terminated=False,
        env_steps=2 * EPISODE,
    )
    for number in count():
        yield replace(episode, number=number, rewards=episode.rewards * rng.random(dtype=np.float32))


def take(episodes: Iterator[Episode], number: int) -> list[Episode]:
    """The next few."""
    return [next(episodes) for _ in range(number)]


def compare(ours: Callable[[], float], other: Callable[[], float], rounds: int) -> Compared:
    """Two actions, each of which returns its rate, in turn; the first round of each is not counted."""
    rates = np.array([[ours(), other()] for _ in range(rounds + 1)][1:])  # [rounds, 2]
    medians = np.median(rates, axis=0)
    return Compared(medians[0], medians[1], float(np.median(rates[:, 0] / rates[:, 1])))


def rate(action: Callable[[], object], times: int) -> float:
    """Calls per second."""
    started = time.perf_counter()
    for _ in range(times):
        action()
    return times / (time.perf_counter() - started)


def store_rate(shard: ReplayShard, records: list[bytes]) -> float:
    """Episodes per second."""
    rest = iter(records)
    return rate(lambda: shard.insert(next(rest)), len(records))


def shard_config(sampler: SamplerName) -> ShardConfig:
    """The default, durable, with that sampler."""
    return ShardConfig(replay=ReplayConfig(capacity=CAPACITY, sampler=sampler))


def in_one_process(sampler: SamplerName, directory: Path, size: Size) -> tuple[Compared, float]:
    """Windows drawn per second, and steps stored per second (median), by one shard."""
    shard, rings = ReplayShard(directory, shard_config(sampler), DATA, seed=0), Rings()
    episodes, inserted = random_episodes(), []
    for _ in range(max(size.rounds, CAPACITY // EPISODE // size.episodes + 1)):  # it is full in the end
        inserted.append(EPISODE * store_rate(shard, [encode(e) for e in take(episodes, size.episodes)]))
    windows = compare(
        lambda: BATCH_SIZE * rate(lambda: shard.sample(BATCH_SIZE), size.batches),
        lambda: BATCH_SIZE * rate(rings.sample, size.batches),
        size.rounds,
    )
    shard.close()
    return windows, float(np.median(inserted))


def through_ray(sampler: SamplerName, shards: int, directory: Path, size: Size) -> tuple[Compared, Compared]:
    """Batches drawn per second, and steps stored per second, of all shards together against one plain actor.

    Needs a Ray that runs. Leaves nothing in it.
    """
    settings = ReplaySettings(shard_config(sampler), DATA)
    actors = start_shards(f"bench-{sampler}-{shards}", directory, settings, 0, shards)
    bare: Any = ray.remote(Rings).options(num_cpus=1).remote()
    replay = RemoteReplay(actors, 0, BATCH_SIZE, prefetch=IN_FLIGHT, timeout_s=120)
    episodes, under_way = random_episodes(), deque([bare.sample.remote() for _ in range(IN_FLIGHT)])

    def bare_next() -> list[np.ndarray]:
        under_way.append(bare.sample.remote())
        return ray.get(under_way.popleft())

    def insert(episode: Episode) -> Any:
        shard = actors[shard_of(episode.actor, episode.number, shards)]
        return shard.insert.options(concurrency_group="insert").remote(encode(episode))

    def bare_insert(episode: Episode) -> Any:
        return bare.insert.remote(episode.observations, episode.actions, episode.rewards)

    try:
        steps = compare(
            lambda: insert_rate(insert, take(episodes, size.episodes)),
            lambda: insert_rate(bare_insert, take(episodes, size.episodes)),
            max(size.rounds, CAPACITY // EPISODE // size.episodes),
        )
        batches = compare(lambda: rate(replay.next, size.batches), lambda: rate(bare_next, size.batches), size.rounds)
    finally:
        for actor in [*actors, bare]:
            ray.kill(actor)
    return batches, steps


def waiting(directory: Path, updates: Sequence[float], batches: int) -> list[float]:
    """For each duration of an update, in seconds: the share of its time that the learner waits for batches.

    It sleeps meanwhile, as while a GPU computes. One shard, uniform. Needs a Ray that runs.
    """
    settings = ReplaySettings(shard_config("uniform"), DATA)
    actors = start_shards("bench-waiting", directory, settings, 0, 1)
    replay = RemoteReplay(actors, 0, BATCH_SIZE, prefetch=IN_FLIGHT, timeout_s=120)
    insert = actors[0].insert.options(concurrency_group="insert")
    try:
        insert_rate(lambda episode: insert.remote(encode(episode)), take(random_episodes(), CAPACITY // EPISODE))
        shares = []
        for seconds in updates:
            waited = 0.0
            started = time.perf_counter()
            for _ in range(batches):
                asked = time.perf_counter()
                replay.next()
                waited += time.perf_counter() - asked
                time.sleep(seconds)
            shares.append(waited / (time.perf_counter() - started))
    finally:
        ray.kill(actors[0])
    return shares


def insert_rate(send: Callable[[Episode], Any], episodes: list[Episode]) -> float:
    """Steps per second, from the first sent to the last acknowledged."""
    started, waiting = time.perf_counter(), deque[Any]()
    for episode in episodes:
        if len(waiting) == IN_FLIGHT:
            assert ray.get(waiting.popleft())
        waiting.append(send(episode))
    assert all(ray.get(list(waiting)))
    return EPISODE * len(episodes) / (time.perf_counter() - started)


def print_replay(size: Size = Size()) -> None:
    """Both tables; starts a Ray of its own for the second."""
    shape = f"observation {OBS_DIM}, action {ACTION_DIM}, {BATCH_SIZE} windows of {WINDOW}, episodes of {EPISODE}"
    print(f"\nreplay: {shape}; medians of {size.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'in one process':24}{'windows/s':>12}{'indexing':>12}{'ratio':>8}{'stored steps/s':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for sampler in SAMPLERS:
            windows, inserted = in_one_process(sampler, Path(folder) / sampler, size)
            row = f"{windows.ours:12,.0f}{windows.other:12,.0f}{windows.ratio:8.2f}{inserted:16,.0f}"
            print(f"{sampler:24}{row}", flush=True)

        os.environ["RAY_AUTH_MODE"] = "disabled"  # or a local Ray leaves a token in the user's home
        one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=one_thread)
        try:
            head = (
                f"{'batches/s':>12}{'plain actor':>12}{'ratio':>8}{'stored steps/s':>16}{'plain actor':>12}{'ratio':>8}"
            )
            print(f"{'through Ray':16}{'shards':>8}{head}")
            for sampler, shards in [*((name, 1) for name in SAMPLERS), ("uniform", 2), ("uniform", 4)]:
                batches, steps = through_ray(sampler, shards, Path(folder) / f"{sampler}-{shards}", size)
                row = f"{batches.ours:12.0f}{batches.other:12.0f}{batches.ratio:8.2f}"
                row += f"{steps.ours:16,.0f}{steps.other:12,.0f}{steps.ratio:8.2f}"
                print(f"{sampler:16}{shards:8}{row}", flush=True)
            shares = zip(UPDATES, waiting(Path(folder) / "waiting", UPDATES, WAITS), strict=True)
            told = ", ".join(f"{1e3 * seconds:g} ms: {share:.1%}" for seconds, share in shares)
            print(f"the learner's time spent waiting for batches, when an update takes {told}", flush=True)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    print_replay()
