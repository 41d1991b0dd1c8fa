"""Permits to collect: which actor may begin now, by the pace and by what all of them are collecting already.

    actor --ended(stored)--> Rounds --updates_before_insert--> loop: collect, or wait
    loop  --began, counted-->

An actor asks before each round of episodes. The pace knows what the learner has read from the shards; here is what it
cannot know yet: what was stored since, what is under way, and how far the learner gets while an actor collects.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from qttdm.replay.limiter import Pace


@dataclass(frozen=True)
class Permit:
    """The answer to an actor that would like to collect."""

    verdict: Literal["collect", "wait", "done"]
    retry_seconds: float = 0.0
    """wait: ask again after so long"""
    reason: str = "the learner to make its updates"
    """wait: what for"""
    random: bool = False
    """collect: the seed episodes, uniformly random"""
    exploration: float = 1.0
    version: int = 0
    """newest published weights"""


@dataclass(frozen=True)
class Round:
    """What an actor collected between two permits."""

    decisions: int
    seconds: float


class Rounds:
    """The rounds of all actors; `counted` is for the learner's thread, the rest for those that answer actors.

    Times are in time.monotonic()'s seconds.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._uncounted: deque[tuple[float, int]] = deque()
        """when an actor reported how many decisions, which the pace may not have counted yet"""
        self._began: dict[int, float] = {}
        """when each actor that is collecting was allowed to"""
        self._last: dict[int, Round] = {}
        """of each actor: the next one is expected to be as large, and to take as long as they all do on average"""

    def ended(self, actor: int, stored: int, now: float) -> None:
        """End an actor's round: it asks again, and has put so many decisions into replay since it asked last.

        Until the pace has counted them they count here, or fast actors would run ahead between two pages.
        """
        began = self._began.pop(actor, now)
        if stored:
            self._uncounted.append((now, stored))
            self._last[actor] = Round(stored, now - began)

    def began(self, actor: int, now: float) -> None:
        """Begin an actor's round: it got its permit."""
        self._began[actor] = now

    def counted(self, asked: float) -> None:
        """Forget what was stored before that moment: the pace has counted it."""
        while self._uncounted and self._uncounted[0][0] < asked:
            self._uncounted.popleft()

    def updates_before_insert(self, actor: int, update_seconds: float) -> float:
        """Return updates to be made before this actor may begin, at so many seconds each; below 0: it may begin now.

        The learner goes on while it collects; that counts up to a round of all the others, so that an actor which
        takes for ever, or a learner that stops, cannot add more than that to the backlog (the bound in
        replay/limiter.py).
        """
        rounds = dict(self._last)
        # Not by its own last round: after a short one (of random actions, say) the others would leave it no turn, and
        # it would not get another one to correct that.
        seconds = sum(round.seconds for round in rounds.values()) / max(1, len(rounds))
        others = sum(round.decisions for other, round in rounds.items() if other != actor)
        return self.pace.updates_before_insert(
            uncounted=sum(decisions for _, decisions in list(self._uncounted)),
            under_way=sum(self._last[other].decisions for other in list(self._began) if other in self._last),
            meanwhile=min(seconds / update_seconds, self.pace.update_ratio * others),
        )
