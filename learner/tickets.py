"""Tickets: which actor may collect now, by the pace and by what all of them are collecting already.

    actor --ended(stored)--> Rounds --excess--> loop: collect, or wait
    loop  --began, heard-->

An actor asks before each round of episodes. The pace knows what the learner has read from the shards; here is what it
cannot know yet: what was stored since, what is under way, and how far the learner gets while an actor collects.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from replay.limiter import Pace


@dataclass(frozen=True)
class Ticket:
    """The answer to an actor that would like to collect."""

    verdict: Literal["collect", "wait", "done"]
    retry_seconds: float = 0.0
    """wait: ask again after so long"""
    random: bool = False
    """collect: the seed episodes, uniformly random"""
    exploration: float = 1.0
    version: int = 0
    """newest published weights"""


@dataclass(frozen=True)
class Round:
    """What an actor collected between two tickets."""

    decisions: int
    updates: int
    """made by the learner meanwhile"""


class Rounds:
    """The rounds of all actors; `heard` is the learner's thread's, the rest that of whoever answers actors."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._unheard: deque[tuple[float, int]] = deque()
        """when an actor told of how many decisions, which the news that were read may not have had yet"""
        self._began: dict[int, int] = {}
        """the updates when each actor that is collecting was allowed to"""
        self._last: dict[int, Round] = {}
        """of each actor: its next one is expected to be like it"""

    def ended(self, actor: int, stored: int) -> None:
        """An actor asks again, and has put so many decisions into replay since it asked last.

        Until the news have them they count here, or fast actors would run ahead between two looks.
        """
        began = self._began.pop(actor, self.pace.updates)
        if stored:
            self._unheard.append((time.monotonic(), stored))
            self._last[actor] = Round(stored, self.pace.updates - began)

    def began(self, actor: int) -> None:
        """An actor got its ticket."""
        self._began[actor] = self.pace.updates

    def heard(self, asked: float) -> None:
        """The pace has counted all that was stored before that moment of time.monotonic()."""
        while self._unheard and self._unheard[0][0] < asked:
            self._unheard.popleft()

    def excess(self, actor: int) -> float:
        """Updates that have to be made before this actor may begin, if 0 or more."""
        last = self._last.get(actor, Round(0, 0))
        return self.pace.excess(
            unheard=sum(decisions for _, decisions in list(self._unheard)),
            under_way=sum(self._last[other].decisions for other in list(self._began) if other in self._last),
            meanwhile=last.updates,
        )
