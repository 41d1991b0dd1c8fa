"""The feed of stored episodes: their numbers without their arrays, read page by page, each episode once.

    learner --cursor--> shard.episodes_since --EpisodePage: episodes, next cursor, totals--> learner

A cursor is a sequence number. The learner keeps one per shard in its checkpoint, so that it has counted what is
durable: after a kill of either, it reads on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qttdm.common.episode import Episode
from qttdm.replay.codec import checksum_of


class EpisodesLostError(ValueError):
    """Episodes that a saved state needs are no more as they were; one line says which."""


PAGE_EPISODES = 1000
"""most episodes of a page"""


@dataclass(frozen=True)
class StoredEpisode:
    """An episode that a shard has stored, without its arrays. Fields of the same name are Episode's."""

    sequence: int
    """its place among all that the shard ever stored, counted from 0; numbers of lost ones are left out"""
    actor: int
    number: int
    decisions: int
    env_steps: int
    episode_return: float
    success: float | None
    oldest_weights: int
    newest_weights: int
    checksum: int
    """of its record: two of the same name are told apart by it"""

    @staticmethod
    def of(sequence: int, record: bytes, episode: Episode) -> StoredEpisode:
        """Take the numbers of an episode from its record (replay/codec.py)."""
        return StoredEpisode(
            sequence=sequence,
            actor=episode.actor,
            number=episode.number,
            decisions=episode.decisions,
            env_steps=episode.env_steps,
            episode_return=episode.episode_return,
            success=episode.success,
            oldest_weights=episode.oldest_weights,
            newest_weights=episode.newest_weights,
            checksum=checksum_of(record),
        )


@dataclass(frozen=True)
class Totals:
    """Sums over all episodes ever inserted, evicted ones included, lost ones not."""

    episodes: int = 0
    decisions: int = 0
    env_steps: int = 0

    def plus(self, *episodes: StoredEpisode) -> Totals:
        """Add some more episodes."""
        return Totals(
            self.episodes + len(episodes),
            self.decisions + sum(episode.decisions for episode in episodes),
            self.env_steps + sum(episode.env_steps for episode in episodes),
        )


@dataclass(frozen=True)
class EpisodePage:
    """An answer of `ReplayShard.episodes_since`; all of one moment."""

    episodes: list[StoredEpisode]
    """oldest first, at most PAGE_EPISODES"""
    cursor: int
    """where the next page begins"""
    totals: Totals
    """of everything inserted, also of episodes on later pages or evicted before they could be read"""
    lost: list[tuple[int, str]] = field(default_factory=list)
    """sequence numbers of episodes that were stored and are not whole on disk any more, and what is missing"""
