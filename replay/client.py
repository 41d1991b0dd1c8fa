"""Which shard an episode goes to, and how a batch is put together from several shards.

actor:    shard_of(actor, number) -> which shard an episode goes to, also when it is sent again
learner:  counts(masses, ..) -> how many windows of each batch from each shard;  merge(batches) -> one batch
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qttdm.common.batch import Batch
from qttdm.replay.samplers import shares


def shard_of(actor: int, number: int, shards: int) -> int:
    """Choose the shard of episode (actor, number), 0 .. shards-1: always the same, so that a retry is noticed.

    Consecutive episodes of one actor go to consecutive shards, and actors start at different ones.
    """
    return (actor + number) % shards


def counts(masses: Sequence[float], batch_size: int, batches: int, rng: np.random.Generator) -> list[list[int]]:
    """Share some batches out among shards with those masses: how many windows each gives to each batch.

    A draw from the union picks a shard by its share of the weight and then draws within it, so the counts of a batch
    are multinomial. (Fixed counts would make every shard's part too regular: never absent, never double.) ValueError if
    nothing is stored.
    """
    return rng.multinomial(batch_size, shares(masses), batches).T.tolist()


def merge(batches: Sequence[Batch]) -> Batch:
    """Merge batches of B1, B2, .. windows -> one of B1 + B2 + .., each array copied once."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
