"""The replay as the learner sees it, and shards in the learner's own process; replay/remote.py has them over Ray.

LearningLoop --next, episodes_since, save, load--> LocalShards --> ReplayShard 0 .. S-1 in this process
collector ----insert------------------->
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from qttdm.common.batch import Batch
from qttdm.common.episode import Episode
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.replay.client import counts, merge, shard_of
from qttdm.replay.codec import encode
from qttdm.replay.feed import EpisodePage
from qttdm.replay.metrics import INSERT_SECONDS, SAMPLE_SECONDS
from qttdm.replay.shard import ReplayShard


class ReplaySource(Protocol):
    """Shards, numbered from 0. Each method raises TimeoutError, saying who waits for what."""

    def next(self) -> Batch:
        """Return the next batch."""

    def episodes_since(self, cursors: Sequence[int]) -> list[EpisodePage]:
        """Return each shard's next page of stored episodes from its cursor on."""

    def save(self) -> dict[str, bytes]:
        """Save into blobs for a checkpoint. When this returns, all episodes of earlier pages are on the disk itself."""

    def load(self, blobs: Mapping[str, bytes]) -> None:
        """Go back to a `save` on one machine; on a cluster keep the later episodes, whose actors go on.

        EpisodesLostError if episodes are gone that it needs; shards then may keep all that they have.
        """


class LocalShards:
    """A ReplaySource in one process, into which its collector inserts. Draws repeat exactly after a `load`."""

    def __init__(
        self, shards: Sequence[ReplayShard], telemetry: Sequence[Telemetry], batch_size: int, seed: int
    ) -> None:
        """telemetry: one for each shard. seed: of the draw of how many windows each shard gives to a batch."""
        self.shards, self.telemetry, self.batch_size = shards, telemetry, batch_size
        self._rng = np.random.default_rng(seed)

    def insert(self, episode: Episode) -> None:
        """Store an episode, on disk when this returns."""
        shard = self._shard_of(episode)
        with self.telemetry[shard].timed(INSERT_SECONDS):
            self.shards[shard].insert(encode(episode))

    def _shard_of(self, episode: Episode) -> int:
        return shard_of(episode.actor, episode.number, len(self.shards))

    def next(self) -> Batch:
        """As ReplaySource."""
        with self.telemetry[0].timed(SAMPLE_SECONDS):
            if len(self.shards) == 1:
                return self.shards[0].sample(self.batch_size)
            drawn = counts([shard.mass() for shard in self.shards], self.batch_size, 1, self._rng)
            return merge([shard.sample(count) for shard, (count,) in zip(self.shards, drawn, strict=True) if count])

    def episodes_since(self, cursors: Sequence[int]) -> list[EpisodePage]:
        """As ReplaySource."""
        return [shard.episodes_since(cursor) for shard, cursor in zip(self.shards, cursors, strict=True)]

    def next_number(self, actor: int) -> int:
        """Return the number from which this actor's episodes are new in every shard."""
        return max(shard.next_number(actor) for shard in self.shards)

    def save(self) -> dict[str, bytes]:
        """As ReplaySource."""
        states = {f"replay-{i}": shard.save_state() for i, shard in enumerate(self.shards)}
        return states | {"replay-draw": json.dumps(self._rng.bit_generator.state).encode()}

    def load(self, blobs: Mapping[str, bytes]) -> None:
        """Go back to a `save`. A shard that did not answer at that checkpoint, on a cluster, keeps all episodes."""
        if "replay-draw" in blobs:
            self._rng.bit_generator.state = json.loads(blobs["replay-draw"])
        for i, shard in enumerate(self.shards):
            if f"replay-{i}" in blobs:
                shard.load_state(blobs[f"replay-{i}"])

    def close(self) -> None:
        """Flush, and let another process open the directories."""
        for shard in self.shards:
            shard.close()
