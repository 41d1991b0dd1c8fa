"""Pace: how many updates there are for each decision, whatever the speed of actors and learner.

    actors  -- updates_before_insert -->  Pace  <-- can_sample? -- learner
               inserted(T)                      sampled()

After the seed decisions, updates follow decisions at `update_ratio`. The faster side waits: the learner when it has
made every update that the decisions so far ask for; an actor while the backlog of updates would be `max_backlog` or
more when it has collected its next episodes. So at any moment

    ratio * (D - seed) - max_backlog - ratio * (decisions of one round of all actors)  <=  U  <=  ratio * (D - seed)

with D decisions inserted and U updates made, a round being the longer of an actor's last and its present one. (After a
kill of the learner U is its checkpoint's, and actors wait until that is made up. Updates on a data set, all made before
the first episode, are not in U, and its decisions are the seed.) Both sides cannot wait at once: while the learner
waits (backlog < 1) any actor may begin, whatever others have begun and perhaps never end.

Choice: an actor looks ahead. Why: by the present backlog alone, actors faster than the learner all begin in the moment
when it allows one, and then all wait, while slow ones begin too late, when the learner has caught up. By the backlog to
come, fast ones collect one after the other, with newer weights, and slow ones all the time. Plain arithmetic, no clock
and no transport: the waiting is done outside, with timeouts.
"""

from __future__ import annotations

import math

from pydantic import Field

from qttdm.common.config import Config


class PaceConfig(Config):
    """The contract between actors and learner."""

    max_backlog: float = Field(default=500.0, ge=1)
    """updates still to be made for the decisions so far, from which on actors wait; below 1 both sides could wait for
    each other for ever"""


class Pace:
    """Counts decisions and updates, and decides which side may go on."""

    def __init__(self, config: PaceConfig, update_ratio: float, seed_decisions: int, offline_updates: int = 0) -> None:
        """update_ratio: updates per decision, > 0; seed_decisions: decisions before the first update, >= 1.

        offline_updates: made for the seed decisions, which are a data set's then.
        """
        assert update_ratio > 0, update_ratio
        assert seed_decisions >= 1, seed_decisions
        self.config, self.update_ratio, self.seed_decisions = config, update_ratio, seed_decisions
        self.offline_updates = offline_updates
        self.decisions = 0
        self.updates = 0

    @property
    def backlog(self) -> float:
        """Updates still to be made for the decisions so far; 0 before the seed is in."""
        return max(0.0, self.updates_for(self.decisions) - self.updates)

    @property
    def can_sample(self) -> bool:
        """May the learner make another update?"""
        return self.backlog >= 1

    def updates_before_insert(self, uncounted: int = 0, under_way: int = 0, meanwhile: float = 0.0) -> float:
        """Return updates to be made before an actor may begin another round of episodes; below 0: it may begin now.

        uncounted: decisions that are stored and not counted here yet. under_way: those of rounds that other actors have
        begun. meanwhile: updates that will be made while this one collects; for the bound above at most
        ratio * (decisions of one round of all others).
        """
        stored = self.decisions + uncounted
        if stored < self.seed_decisions:
            return -math.inf
        allowed = max(1.0, self.config.max_backlog + meanwhile - self.update_ratio * under_way)
        return self.updates_for(stored) - self.updates - allowed

    def updates_for(self, decisions: int) -> float:
        """Return updates that so many decisions ask for in all."""
        beyond = decisions - self.seed_decisions
        return 0.0 if beyond < 0 else self.offline_updates + self.update_ratio * beyond

    def inserted(self, decisions: int) -> None:
        """Count an episode of that many decisions."""
        self.decisions += decisions

    def extend_seed(self, decisions: int) -> None:
        """Let the next episode, random to its end beyond the seed, ask for no updates."""
        self.seed_decisions = max(self.seed_decisions, self.decisions + decisions)

    def sampled(self, updates: int = 1) -> None:
        """Count that many updates."""
        self.updates += updates

    def lost(self, decisions: int) -> None:
        """Take back decisions that replay has lost, and the updates made for them: the backlog stays."""
        self.decisions -= decisions
        self.updates = max(0, self.updates - round(self.update_ratio * decisions))

    def waiting_for(self) -> str:
        """Say what the learner waits for now, for timeouts and logs."""
        if not self.can_sample:
            needed = self.seed_decisions + (self.updates + 1) / self.update_ratio - self.decisions
            return f"the learner waits for {needed:.0f} more decisions ({self.decisions} so far)"
        return f"the learner does not wait (it has {self.backlog:.0f} updates to make)"

    def save(self) -> dict[str, int]:
        """Return counters, for a checkpoint."""
        return {"decisions": self.decisions, "updates": self.updates, "seed_decisions": self.seed_decisions}

    def load(self, counters: dict[str, int]) -> None:
        """Go on from a checkpoint. Decisions stored after it are counted next, and their updates made up for."""
        self.updates = counters["updates"]
        self.seed_decisions = max(self.seed_decisions, counters["seed_decisions"])
        self.decisions = counters["decisions"]
