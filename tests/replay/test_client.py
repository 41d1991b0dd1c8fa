"""Episodes find their shard, batches are drawn from several shards and put together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qttdm.common.batch import Batch
from qttdm.replay.client import counts, merge, shard_of


def batch(size: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        observations=rng.random((size, 4, 3), np.float32),
        actions=rng.random((size, 3, 2), np.float32),
        rewards=rng.random((size, 3), np.float32),
        terminated=rng.random((size, 3)) < 0.5,
        mask=rng.random((size, 3)) < 0.5,
        returns_to_go=rng.random((size, 3), np.float32),
    )


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_episodes_spread_evenly_and_a_retry_goes_where_the_first_try_went(shards: int) -> None:
    where = [shard_of(actor, number, shards) for actor in range(4) for number in range(30)]
    assert where == [shard_of(actor, number, shards) for actor in range(4) for number in range(30)]
    assert np.bincount(where, minlength=shards).tolist() == [120 // shards] * shards
    first = [shard_of(actor, 0, shards) for actor in range(shards)]
    assert sorted(first) == list(range(shards))


def test_counts_sum_to_the_batch_and_follow_the_shards_weight() -> None:
    rng = np.random.default_rng(0)
    masses = [math.log(100), -math.inf, math.log(300)]
    draws = np.concatenate([np.array(counts(masses, 64, 4, rng)).T for _ in range(1000)])
    assert draws.shape == (4000, 3)
    assert (draws.sum(axis=1) == 64).all()
    assert (draws[:, 1] == 0).all()
    assert draws.mean(axis=0) == pytest.approx([16, 0, 48], abs=0.3)
    # The spread of independent draws, n p (1 - p), not of fixed counts.
    assert draws[:, 0].var() == pytest.approx(64 * 0.25 * 0.75, rel=0.1)


def test_nothing_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="want at least one decision"):
        counts([-math.inf] * 2, 8, 1, np.random.default_rng(0))


def test_merged_windows_are_the_parts_in_order() -> None:
    parts = [batch(2, 0), batch(0, 1), batch(3, 2)]
    merged = merge(parts)
    for name in parts[0]:
        rows = [row for part in parts for row in part[name]]
        got = merged[name]
        assert got.dtype == parts[0][name].dtype
        assert len(got) == 5
        assert all((a == b).all() for a, b in zip(got, rows, strict=True))
