"""Several shards sampled as if they were one buffer: how many windows from each, and the batches put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from common.batch import Batch


def split(batch_size: int, weights: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """How many windows to draw from each of S shards, int64 [S], summing to batch_size.

    A draw from the union picks a shard in proportion to its total weight and then draws within it, so the counts of
    a batch are multinomial. (Fixed proportions would make the small shards' episodes too regular: never absent, never
    twice.) ValueError if no shard holds anything.
    """
    total = np.asarray(weights, np.float64)
    if not total.sum() > 0:
        raise ValueError(f"sample: got shards of weights {list(weights)}, want at least one above 0")
    return rng.multinomial(batch_size, total / total.sum())


def merge(batches: Sequence[Batch]) -> Batch:
    """Batches of B1, B2, .. windows -> one of B1 + B2 + .., each array copied once."""
    if len(batches) == 1:
        return batches[0]
    return Batch(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(Batch)})
