"""Replay of several environments whose observations and actions differ in length: a shard for each.

    shard 0: chain-8, 18 + 4 numbers  \\
    shard 1: chain-9, 26 + 8           >--next--> a batch from one, or from several of equal lengths
    shard 2: chain-23, 18 + 4         /

All windows of a batch have the same lengths. How often an environment is drawn is its share, whatever the others are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qttdm.common.batch import Batch
from qttdm.common.episode import Episode
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.replay.client import merge
from qttdm.replay.metrics import SAMPLE_SECONDS
from qttdm.replay.shard import ReplayShard
from qttdm.replay.source import LocalShards


class MixedReplay(LocalShards):
    """LocalShards of one environment each."""

    def __init__(
        self,
        shards: Sequence[ReplayShard],
        telemetry: Sequence[Telemetry],
        batch_size: int,
        seed: int,
        lengths: Sequence[tuple[int, int]],
        shares: Sequence[float],
        first_actor: int,
    ) -> None:
        """lengths: of each shard's observations and actions. shares: positive, of any sum.

        first_actor: episodes of actor `first_actor` + i are those of shard i.
        """
        super().__init__(shards, telemetry, batch_size, seed)
        self._first_actor = first_actor
        of_shard = np.array(shares) / np.sum(shares)
        alike = [[i for i, other in enumerate(lengths) if other == kind] for kind in dict.fromkeys(lengths)]
        self._buckets = [(bucket, of_shard[bucket] / of_shard[bucket].sum()) for bucket in alike]
        self._of_bucket = np.array([of_shard[bucket].sum() for bucket in alike])

    def next(self) -> Batch:
        """As ReplaySource: draw the lengths, then how many windows each environment of these gives."""
        with self.telemetry[0].timed(SAMPLE_SECONDS):
            bucket, within = self._buckets[self._rng.choice(len(self._buckets), p=self._of_bucket)]
            drawn = self._rng.multinomial(self.batch_size, within).tolist()
            return merge([self.shards[i].sample(count) for i, count in zip(bucket, drawn, strict=True) if count])

    def _shard_of(self, episode: Episode) -> int:
        return episode.actor - self._first_actor
