"""Several shards as one buffer: counts and merged batches."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from common.batch import Batch
from replay.union import merge, split


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


def test_counts_sum_to_the_batch_and_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([split(64, [1.0, 0.0, 3.0], rng) for _ in range(4000)])
    assert (draws.sum(axis=1) == 64).all()
    assert (draws[:, 1] == 0).all()
    assert draws.mean(axis=0) == pytest.approx([16, 0, 48], abs=0.3)
    # The spread of independent draws, not of fixed proportions: n p (1 - p).
    assert draws[:, 0].var() == pytest.approx(64 * 0.25 * 0.75, rel=0.1)


def test_the_same_generator_gives_the_same_counts() -> None:
    first, second = (split(100, [2.0, 5.0], np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all()


def test_nothing_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="want at least one above 0"):
        split(8, [0.0, 0.0], np.random.default_rng(0))


def test_merged_windows_are_the_parts_in_order() -> None:
    parts = [batch(2, 0), batch(0, 1), batch(3, 2)]
    merged = merge(parts)
    for field in fields(Batch):
        rows = [row for part in parts for row in getattr(part, field.name)]
        got = getattr(merged, field.name)
        assert got.dtype == getattr(parts[0], field.name).dtype
        assert len(got) == 5
        assert all((a == b).all() for a, b in zip(got, rows, strict=True))
