"""How far the learner has counted the episodes of each replay shard, and which lost ones it went on without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qttdm.replay.feed import EpisodePage


class Cursors:
    """One position in each shard's sequence of episodes."""

    def __init__(self, shards: int) -> None:
        self.positions = [0] * shards
        """the sequence number to read next, by shard"""
        self._accepted: list[set[int]] = [set() for _ in range(shards)]

    def save(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's meta."""
        accepted = [sorted(sequences) for sequences in self._accepted]
        return {"cursors": list(self.positions), "accepted_losses": accepted}

    def load(self, meta: Mapping[str, Any]) -> None:
        """Undo `save`. ValueError if that was of another number of shards."""
        if len(meta["cursors"]) != len(self.positions):
            raise ValueError(
                f"its checkpoint is of {len(meta['cursors'])} replay shards, got {len(self.positions)}; the number of "
                f"shards of a run cannot change"
            )
        self.positions = list(meta["cursors"])
        self._accepted = [set(sequences) for sequences in meta["accepted_losses"]]

    def new_losses(self, pages: Sequence[EpisodePage]) -> list[str]:
        """Name what was counted, is no longer in the shards, and was not accepted before; it counts as accepted then.

        By name, since episodes stored later, or by other shards, could make up for the number of decisions.
        """
        missing = []
        for shard, (page, position) in enumerate(zip(pages, self.positions, strict=True)):
            lost = {sequence: name for sequence, name in page.lost if sequence < position}
            missing += [f"shard {shard}: {lost[sequence]}" for sequence in sorted(lost.keys() - self._accepted[shard])]
            if page.cursor < position:
                missing.append(f"shard {shard}: all from number {page.cursor} to {position - 1}")
            self._accepted[shard] = set(lost)
        return missing

    def go_back(self, pages: Sequence[EpisodePage]) -> None:
        """Read on from the shards' ends where they have lost their newest episodes."""
        self.positions = [min(page.cursor, position) for page, position in zip(pages, self.positions, strict=True)]
