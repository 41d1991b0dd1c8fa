"""What a shard tells the learner about the episodes that it has stored: numbers only, each episode once.

    learner --since: its cursor-->  shard.news  --News: episodes, next cursor, totals-->  learner

A cursor is a sequence number. The learner keeps one per shard in its checkpoint, so that what it has counted is
what is durable: whoever dies, it asks again from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qttdm.common.episode import Episode

MOST_EPISODES = 1000
"""Episodes told of in one answer; for the others one asks again."""


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

    @staticmethod
    def of(sequence: int, episode: Episode) -> StoredEpisode:
        """The numbers of an episode (plain Python's: as read from a record)."""
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
        )


@dataclass(frozen=True)
class Totals:
    """Sums over all episodes ever inserted, evicted ones included, lost ones not."""

    episodes: int = 0
    decisions: int = 0
    env_steps: int = 0

    def plus(self, *episodes: StoredEpisode) -> Totals:
        """With some more."""
        return Totals(
            self.episodes + len(episodes),
            self.decisions + sum(episode.decisions for episode in episodes),
            self.env_steps + sum(episode.env_steps for episode in episodes),
        )


@dataclass(frozen=True)
class News:
    """An answer to `ReplayShard.news`; all of one moment."""

    episodes: list[StoredEpisode]
    """oldest first, at most MOST_EPISODES"""
    cursor: int
    """what to ask with next"""
    totals: Totals
    """of everything inserted, also of episodes that this answer had no room for or that were evicted before it"""
    lost: list[tuple[int, str]] = field(default_factory=list)
    """sequence numbers of episodes that were stored and are not whole on disk any more, and what is missing"""
