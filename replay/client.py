"""The learner's and the actors' side of a sharded replay, with no word about how the shards are reached.

actor:    shard_of(actor, number) -> which shard an episode goes to, also when it is sent again
learner:  Draw.of(masses, ..) -> how many windows of each batch from each shard;  merge(batches) -> one batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from qttdm.common.batch import Batch
from qttdm.replay.samplers import Mass, shares


def shard_of(actor: int, number: int, shards: int) -> int:
    """The shard that episode (actor, number) belongs to, 0 .. shards-1: always the same, so that a retry is noticed.

    Consecutive episodes of one actor go to consecutive shards, and actors start at different ones.
    """
    return (actor + number) % shards


@dataclass(frozen=True)
class Draw:
    """How some batches are drawn from all shards."""

    counts: list[list[int]]
    """for each shard, how many windows it gives to each batch; for each batch the sum is its size"""
    returns: tuple[float, float] | None
    """range of returns over all shards, for `ReplayShard.sample`"""

    @staticmethod
    def of(masses: Sequence[Mass], floor: float, batch_size: int, batches: int, rng: np.random.Generator) -> Draw:
        """That many batches of the union of shards with those masses.

        A draw from the union picks a shard by its share of the weight and then draws within it, so the counts of a
        batch are multinomial. (Fixed counts would make every shard's part too regular: never absent, never double.)
        ValueError if nothing is stored.
        """
        fractions, returns = shares(masses, floor)
        return Draw(rng.multinomial(batch_size, fractions, batches).T.tolist(), returns)


def merge(batches: Sequence[Batch]) -> Batch:
    """Batches of B1, B2, .. windows -> one of B1 + B2 + .., each array copied once."""
    return Batch(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(Batch)})
