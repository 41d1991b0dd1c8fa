"""Which faults, when: a pure function of the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from qttdm.deploy.bench.hostile import WITHOUT_TOKEN

PROCESSES = ("actor", "shard", "learner", "evaluator", "driver", "service")
KINDS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "kill": (PROCESSES, 0, 0),
    "stop": (PROCESSES, 2, 8),
    "terminate": (("driver", "service"), 0, 0),
    "break": (("nan", "raise", "shape", "hang"), 0, 0),
    "fill": (("shard", "learner"), 3, 6),
    "write-protect": (("run",), 3, 6),
    "be hostile": (tuple(WITHOUT_TOKEN), 5, 15),
}
"""of each kind of fault: to whom or by what it is done, and how many seconds it lasts, from and to"""
PAUSE = 2.0, 10.0
"""seconds between faults, from and to"""
AT_ONCE = 1, 1, 2, 3
"""how many, one of these"""


@dataclass(frozen=True)
class Fault:
    """One thing that is done to a run."""

    at: float
    """seconds after the first checkpoint; later if nobody is there to do it to"""
    kind: str
    whom: str
    seconds: float
    """after which it is undone; 0: it is not"""

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.kind} {self.whom}" + (f" for {self.seconds} s" if self.seconds else "")


def schedule(seed: int, minutes: float) -> list[Fault]:
    """List the faults of so many minutes. Each comes once before any comes again."""
    rng = random.Random(seed)  # noqa: S311 - the same faults again
    all_faults = [(kind, whom) for kind, (those, _, _) in KINDS.items() for whom in those]
    faults: list[Fault] = []
    deck: list[tuple[str, str]] = []
    at = 0.0
    while (at := round(at + rng.uniform(*PAUSE), 1)) < 60 * minutes:
        for _ in range(rng.choice(AT_ONCE)):
            deck = deck or rng.sample(all_faults, len(all_faults))
            kind, whom = deck.pop()
            faults.append(Fault(at, kind, whom, round(rng.uniform(*KINDS[kind][1:]), 1)))
    return faults
