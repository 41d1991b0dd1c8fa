"""What a learner needs of a replay that others fill, wherever that is (replay/remote.py has it over Ray)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qttdm.common.batch import Batch
from qttdm.replay.news import News


class ReplaySource(Protocol):
    """Shards, numbered from 0. Each method raises TimeoutError, saying who waits for what."""

    def next(self) -> Batch:
        """The next batch."""

    def news(self, cursors: Sequence[int]) -> list[News]:
        """Of each shard, the episodes since its cursor."""

    def sync(self) -> None:
        """Returns when all that the shards have told of is on the disk itself, safe from a power cut."""
