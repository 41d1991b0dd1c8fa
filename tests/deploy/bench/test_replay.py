"""The replay's benchmark measures what it says; how fast that is, only a calm machine tells."""

import time

import numpy as np
import pytest

from qttdm.deploy.bench import replay as bench_replay
from qttdm.deploy.bench.replay import BATCH_SIZE, SAMPLERS, Rings, Size, compare, in_one_process, random_episodes, take
from qttdm.replay.shard import ReplayShard

SMALL = Size(rounds=1, batches=2, episodes=3)


def test_what_is_compared_with_moves_the_same_bytes(tmp_path):
    shard = ReplayShard(tmp_path, bench_replay.shard_config("uniform"), bench_replay.DATA, seed=0)
    for episode in take(random_episodes(), 3):
        assert shard.insert(bench_replay.encode(episode))
    ours, other = shard.sample(BATCH_SIZE).values(), Rings().sample()
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in other]


def test_rings_keep_what_is_inserted():
    rings, episodes = Rings(), take(random_episodes(), 2)
    for episode in episodes:
        rings.insert(episode.observations, episode.actions, episode.rewards)
    np.testing.assert_array_equal(rings.arrays[2][250:500], episodes[1].rewards)
    np.testing.assert_array_equal(rings.arrays[0][:250], episodes[0].observations[:-1])


def test_the_ratio_is_ours_to_the_other_and_the_first_round_does_not_count():
    ours, other = iter([1.0, 20.0, 40.0, 60.0]), iter([1.0, 10.0, 10.0, 10.0])
    got = compare(lambda: next(ours), lambda: next(other), rounds=3)
    assert (got.ours, got.other, got.ratio) == (40.0, 10.0, 4.0)


def test_rate_is_calls_per_second(monkeypatch):
    clock, calls = iter([10.0, 12.0]), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert bench_replay.rate(lambda: calls.append(None), 5) == 2.5
    assert len(calls) == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_one_process(tmp_path, sampler, monkeypatch):
    monkeypatch.setattr(bench_replay, "CAPACITY", 2000)
    windows, inserted = in_one_process(sampler, tmp_path, SMALL)
    assert min(windows.ours, windows.other, windows.ratio, inserted) > 0
