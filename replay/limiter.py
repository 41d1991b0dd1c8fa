"""Pace: how many updates there are for each decision, whatever the speed of actors and learner.

    actors  -- want_insert? -->  Pace  <-- want_sample? -- learner
               inserted(T)               sampled()

After the seed decisions, updates follow decisions at `update_ratio`. Whoever is ahead waits: the learner when it has
made every update that the decisions so far ask for; an actor while `lead` updates or more would still be owed when it
has collected its next episodes. So at any moment

    ratio * (D - seed) - lead - ratio * (decisions of one round of all actors)  <=  U  <=  ratio * (D - seed)

with D decisions inserted and U updates made, a round being the longer of an actor's last and its present one. (After a
kill of the learner U is its checkpoint's, and actors wait until that is made up.) Both sides cannot wait at once: while
the learner waits (owed < 1) any actor may begin, whatever others have begun and perhaps never end.

Choice: an actor looks ahead. Why: by what is owed now alone, actors faster than the learner all begin in the moment
when the lead allows one, and then all wait, while slow ones begin too late, when the learner has caught up. By what
will be owed, fast ones collect one after the other, with newer weights, and slow ones all the time. Plain arithmetic,
no clock and no transport: whoever waits does so outside, with a timeout of its own.
"""

from __future__ import annotations

import math

from pydantic import Field

from qttdm.common.config import Config


class PaceConfig(Config):
    """The contract between actors and learner."""

    lead: float = Field(default=500.0, ge=1)
    """updates that may be owed before actors wait; below 1 both sides could wait for each other for ever"""


class Pace:
    """Counts decisions and updates, and says who may go on."""

    def __init__(self, config: PaceConfig, update_ratio: float, seed_decisions: int) -> None:
        """update_ratio: updates per decision, > 0; seed_decisions: decisions before the first update, >= 1."""
        assert update_ratio > 0, update_ratio
        assert seed_decisions >= 1, seed_decisions
        self.config, self.update_ratio, self.seed_decisions = config, update_ratio, seed_decisions
        self.decisions = 0
        self.updates = 0

    @property
    def owed(self) -> float:
        """Updates that the decisions so far ask for and that have not been made; 0 before the seed is in."""
        return max(0.0, self.updates_for(self.decisions) - self.updates)

    def want_insert(self, unheard: int = 0, under_way: int = 0, meanwhile: float = 0.0) -> bool:
        """May an actor begin another round of episodes?

        unheard: decisions that are stored and not counted here yet. under_way: those of rounds that others have begun.
        meanwhile: updates that will be made while this one collects; for the bound above at most
        ratio * (decisions of one round of all others).
        """
        return self.excess(unheard, under_way, meanwhile) < 0

    def excess(self, unheard: int = 0, under_way: int = 0, meanwhile: float = 0.0) -> float:
        """Updates that have to be made before an actor may begin, if 0 or more; arguments as above."""
        stored = self.decisions + unheard
        if stored < self.seed_decisions:
            return -math.inf
        allowed = max(1.0, self.config.lead + meanwhile - self.update_ratio * under_way)
        return self.updates_for(stored) - self.updates - allowed

    @property
    def want_sample(self) -> bool:
        """May the learner make another update?"""
        return self.owed >= 1

    def updates_for(self, decisions: int) -> float:
        """Updates that so many decisions ask for in all."""
        return max(0.0, self.update_ratio * (decisions - self.seed_decisions))

    def inserted(self, decisions: int) -> None:
        """An episode of that many decisions has been stored."""
        self.decisions += decisions

    def extend_seed(self, decisions: int) -> None:
        """The episode to be inserted next is random to its end, beyond the seed: it asks for no updates."""
        self.seed_decisions = max(self.seed_decisions, self.decisions + decisions)

    def sampled(self, updates: int = 1) -> None:
        """That many updates have been made."""
        self.updates += updates

    def lost(self, decisions: int) -> None:
        """Replay has lost that many: the updates made for them no longer count, those owed are owed as before."""
        self.decisions -= decisions
        self.updates = max(0, self.updates - round(self.update_ratio * decisions))

    def waiting_for(self) -> str:
        """What the learner waits for now, in words, for timeouts and logs."""
        if not self.want_sample:
            needed = self.seed_decisions + (self.updates + 1) / self.update_ratio - self.decisions
            return f"the learner waits for {needed:.0f} more decisions ({self.decisions} so far)"
        return f"the learner does not wait ({self.owed:.0f} updates are owed)"

    def save(self) -> dict[str, int]:
        """Counters, for a checkpoint."""
        return {"decisions": self.decisions, "updates": self.updates, "seed_decisions": self.seed_decisions}

    def load(self, counters: dict[str, int], decisions: int | None = None) -> None:
        """Go on from a checkpoint.

        decisions: what replay really holds now, if more was stored after the checkpoint. Those updates are owed and
        made up for, rather than forgotten: the ratio holds over the whole run, resumes included.
        """
        self.updates = counters["updates"]
        self.seed_decisions = max(self.seed_decisions, counters["seed_decisions"])
        self.decisions = counters["decisions"] if decisions is None else decisions
