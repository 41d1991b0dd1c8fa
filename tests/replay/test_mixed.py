"""replay/mixed.py: several environments, each drawn by its share, never two lengths in one batch."""

from contextlib import closing

import numpy as np
import pytest

from qttdm.common.contracts import vector_data
from qttdm.common.episode import Episode
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.replay.buffer import ReplayConfig
from qttdm.replay.mixed import MixedReplay
from qttdm.replay.shard import ReplayShard, ShardConfig

LENGTHS, SHARES, FIRST = [(3, 2), (5, 1), (3, 2)], [1.0, 2.0, 5.0], 100


def mixed(folder):
    config = ShardConfig(replay=ReplayConfig(capacity=50))
    shards = [ReplayShard(folder / str(i), config, vector_data(*of, 4, None), i) for i, of in enumerate(LENGTHS)]
    return MixedReplay(shards, [Telemetry.silent("replay")] * 3, 16, 0, LENGTHS, SHARES, FIRST)


def fill(replay):
    """Episodes of environment i observe i, the longer ones of the rarer environments."""
    for i, (obs_dim, action_dim) in enumerate(LENGTHS):
        steps = 10 - 3 * i
        seen, acted = np.full((steps + 1, obs_dim), i, np.float32), np.zeros((steps, action_dim), np.float32)
        for number in range(2):
            replay.insert(Episode(seen, acted, np.zeros(steps, np.float32), False, 0, actor=FIRST + i, number=number))


def test_shares_lengths_and_going_on(tmp_path):
    with closing(mixed(tmp_path / "one")) as replay:
        fill(replay)
        drawn = np.zeros(3)
        for _ in range(400):
            batch = replay.next()
            assert batch["observations"].shape[1:] == (5, {2: 3, 1: 5}[batch["actions"].shape[2]])
            first = batch["observations"][:, 0, 0].astype(int)
            assert len({LENGTHS[i] for i in first}) == 1
            drawn += np.bincount(first, minlength=3)
        assert drawn / drawn.sum() == pytest.approx(np.array(SHARES) / 8, abs=0.06)
        blobs = replay.save()
        wanted = [replay.next() for _ in range(5)]
    with closing(mixed(tmp_path / "one")) as again:
        again.load(blobs)
        for batch in wanted:
            other = again.next()
            assert all(np.array_equal(batch[name], other[name]) for name in batch)
