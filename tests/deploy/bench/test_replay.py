"""The replay's benchmark measures what it says; how fast that is, only a calm machine tells."""

from itertools import islice

import numpy as np
import pytest

from qttdm.deploy.bench import replay as bench_replay
from qttdm.deploy.bench.replay import BATCH_SIZE, SAMPLERS, Rings, in_one_process, random_episodes
from qttdm.replay.shard import ReplayShard


def test_what_is_compared_with_moves_the_same_bytes(tmp_path):
    shard = ReplayShard(tmp_path, bench_replay.shard_config("uniform"), bench_replay.DATA, seed=0)
    for episode in islice(random_episodes(), 3):
        assert shard.insert(bench_replay.encode(episode))
    ours, other = shard.sample(BATCH_SIZE).values(), Rings().sample()
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in other]


def test_rings_keep_what_is_inserted():
    rings, episodes = Rings(), list(islice(random_episodes(), 2))
    for episode in episodes:
        rings.insert(episode)
    np.testing.assert_array_equal(rings.arrays[2][250:500], episodes[1].rewards)
    np.testing.assert_array_equal(rings.arrays[0][:250], episodes[0].observations[:-1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_one_process(tmp_path, sampler, monkeypatch):
    for name, small in (("CAPACITY", 2000), ("ROUNDS", 1), ("BATCHES", 2), ("EPISODES", 3)):
        monkeypatch.setattr(bench_replay, name, small)
    steps, batches = in_one_process(sampler, tmp_path)
    assert min(steps.ours, steps.other, steps.ratio, batches.ours, batches.other, batches.ratio) > 0
