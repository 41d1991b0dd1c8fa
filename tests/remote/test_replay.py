"""Shards as Ray actors: one buffer in sum, and nothing lost or doubled when one is killed."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import ray

from common.episode import Episode
from replay.buffer import ReplayConfig
from replay.remote import RemoteReplay, ReplaySettings, start_shards
from replay.segments import SegmentConfig
from replay.shard import ShardConfig

pytestmark = pytest.mark.ray

OBS, ACTION, WINDOW = 3, 2, 4


def episode(actor: int, number: int, decisions: int = 10) -> Episode:
    """Every observation names its episode and step, so that a window tells where it is from."""
    observations = np.zeros((decisions + 1, OBS), np.float32)
    observations[:, 0], observations[:, 1], observations[:, 2] = actor, number, np.arange(decisions + 1)
    return Episode(
        observations=observations,
        actions=np.zeros((decisions, ACTION), np.float32),
        rewards=np.ones(decisions, np.float32),
        terminated=False,
        env_steps=decisions,
        actor=actor,
        number=number,
    )


@pytest.fixture
def replay(cluster, tmp_path, request):
    config = ShardConfig(replay=ReplayConfig(capacity=10_000), log=SegmentConfig())
    settings = ReplaySettings(config, OBS, ACTION, WINDOW, 0.9)
    shards = start_shards(request.node.name, tmp_path, settings, seed=0, shards=2)
    yield RemoteReplay(shards, floor=0.1, seed=0, batch_size=64, prefetch=2, timeout_s=60)
    for shard in shards:
        ray.kill(shard)


def process_of(shard) -> int:
    """The operating system's number of the process that an actor runs in."""
    return ray.get(shard.__ray_call__.remote(lambda self: os.getpid()), timeout=60)


def seen_in(replay: RemoteReplay, batches: int) -> set[tuple[int, int]]:
    """(actor, number) of the episodes that some batches are from."""
    names = set()
    for _ in range(batches):
        first = replay.next().observations[:, 0]  # [B, M]
        names |= {(int(a), int(n)) for a, n in first[:, :2]}
    return names


def test_the_union_of_shards_is_sampled_as_one_buffer(replay):
    for number in range(12):
        assert replay.insert(episode(1, number, decisions=5 + 3 * number))
    counts = np.zeros(12)
    for _ in range(200):
        batch = replay.next()
        assert batch.observations.shape == (64, WINDOW + 1, OBS)
        numbers, starts = batch.observations[:, 0, 1].astype(int), batch.observations[:, 0, 2].astype(int)
        counts += np.bincount(numbers, minlength=12)
        # Windows are what was inserted: consecutive steps of one episode, masked behind its end.
        left = (5 + 3 * numbers) - starts
        assert (batch.mask.sum(axis=1) == np.minimum(left, WINDOW)).all()
    want = np.array([5 + 3 * n for n in range(12)], float)
    want *= counts.sum() / want.sum()
    assert (((counts - want) ** 2) / want).sum() < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_a_retried_insert_is_stored_once(replay):
    assert replay.insert(episode(3, 0))
    assert not replay.insert(episode(3, 0))
    assert sum(s.decisions for s in replay.stats()) == 10
    assert sum(s.duplicates for s in replay.stats()) == 1


def test_killed_in_the_middle_nothing_acknowledged_is_lost_or_doubled(replay):
    for number in range(20):
        replay.insert(episode(0, number))
    assert len(seen_in(replay, 30)) == 20
    pids = [process_of(shard) for shard in replay.shards]
    os.kill(pids[0], signal.SIGKILL)
    for number in range(20, 40):  # goes on while the shard restarts: Ray sends again, the shard knows what it has
        replay.insert(episode(0, number))
    names = seen_in(replay, 60)
    stats = replay.stats()
    assert process_of(replay.shards[0]) != pids[0]
    assert names == {(0, number) for number in range(40)}
    assert sum(s.episodes for s in stats) == 40
    assert sum(s.inserted_decisions for s in stats) == 400


def test_news_are_told_once_across_a_kill(replay):
    told, cursors = [], [0, 0]

    def listen() -> int:
        answers = replay.news(cursors)
        for i, news in enumerate(answers):
            told.extend((e.actor, e.number, e.decisions, e.episode_return, e.success) for e in news.episodes)
            cursors[i] = news.cursor
        return sum(news.totals.env_steps for news in answers)

    for number in range(10):
        replay.insert(episode(0, number))
    assert listen() == 100
    os.kill(process_of(replay.shards[0]), signal.SIGKILL)
    for number in range(10, 20):
        replay.insert(episode(0, number))
    assert listen() == 200
    assert listen() == 200
    assert sorted(told) == [(0, number, 10, 10.0, None) for number in range(20)]


def test_a_batch_that_does_not_come_says_who_waits_for_what(replay):
    replay.insert(episode(0, 0))
    replay.insert(episode(0, 1))
    replay.timeout_s = 0.5
    pids = [process_of(shard) for shard in replay.shards]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"waited 0.5 s for the replay shards' masses"):
            replay.next()
        assert time.monotonic() - started < 10
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    replay.timeout_s = 60
    assert len(replay.next().mask) == 64
