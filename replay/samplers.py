"""Which decision a window starts at: three samplers with one interface.

Decisions carry running numbers that are never reused. Stored ones are always one range of at most `capacity` numbers:
episodes join at its upper end and leave at its lower. So per-decision values live in rings, at number % capacity.

Several samplers of one kind, each with a share of the episodes, draw as one would that had them all:

    fractions, returns = shares([sampler.mass(..) for each], floor)     on masses of one moment
    counts = rng.multinomial(batch_size, fractions)                     how many each draws, told `returns`
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qttdm.replay.sum_tree import SumTree


@dataclass(frozen=True)
class Mass:
    """The weight of all that one sampler holds, in numbers that mean the same to every sampler of its kind."""

    log_weight: float
    """log of the sum of the weights, -inf if nothing is stored; return_weighted: log of the number of decisions"""
    returns: tuple[float, float, float] | None = None
    """return_weighted: lowest and highest return of the episodes, and the mean over decisions of their episode's"""


def shares(masses: Sequence[Mass], floor: float) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Fractions [number of masses] of a batch that each sampler must draw, and the range of returns to draw it with.

    Logs, because `balanced` weighs each sampler's decisions against a base of its own, and differences of bases may
    have exponentials beyond any float. The range of returns (None for other kinds) is that of all samplers together:
    weights of return_weighted are relative to it. `floor` is return_weighted's. ValueError if nothing is stored.
    """
    log_weights = np.array([mass.log_weight for mass in masses])
    if not (log_weights > -np.inf).any():
        raise ValueError(f"shares: got {len(masses)} samplers that hold nothing, want at least one decision")
    held = [mass.returns for mass in masses if mass.returns]
    lowest, highest = (min(r[0] for r in held), max(r[1] for r in held)) if held else (0.0, 0.0)
    for index, mass in enumerate(masses):
        if mass.returns:
            log_weights[index] += math.log(floor + (mass.returns[2] - lowest) / ((highest - lowest) or 1.0))
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum(), (lowest, highest) if held else None


class Sampler(Protocol):
    """What Replay needs from a sampler; `stored` and `span` are ranges of decision numbers."""

    def add(self, span: range, episode_return: float) -> None:
        """An episode with these decisions and this undiscounted return has joined."""

    def evict(self, span: range) -> None:
        """The oldest episode, which has these decisions, leaves."""

    def draw(
        self, stored: range, batch_size: int, rng: np.random.Generator, returns: tuple[float, float] | None = None
    ) -> np.ndarray:
        """int64 [batch_size] decision numbers, drawn with replacement from the non-empty range `stored`.

        returns: the range that `shares` gave, if this is one sampler of several.
        """

    def mass(self, stored: range) -> Mass:
        """Weight of the range `stored`, all that was added and not evicted."""

    def state(self) -> dict[str, Any]:
        """What cannot be rebuilt by adding the stored episodes again: plain values and bytes."""

    def load(self, state: dict[str, Any]) -> None:
        """Take over `state()` of an equal sampler, after the same episodes were added."""


class Uniform:
    """Every stored decision is as likely as any other."""

    def add(self, span: range, episode_return: float) -> None:
        """Nothing to keep."""

    def evict(self, span: range) -> None:
        """Nothing to forget."""

    def draw(
        self, stored: range, batch_size: int, rng: np.random.Generator, returns: tuple[float, float] | None = None
    ) -> np.ndarray:
        """O(batch_size)."""
        return rng.integers(stored.start, stored.stop, batch_size)

    def mass(self, stored: range) -> Mass:
        """Every decision weighs 1."""
        return Mass(_log(len(stored)))

    def state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


class ReturnWeighted:
    """Episodes in proportion to length * (floor + (R - R_min) / (R_max - R_min)), then uniform within the episode.

    R is the undiscounted return, R_min and R_max are those of the stored episodes; if all are equal every decision is
    equally likely. So signs do not matter, adding a constant to all returns or scaling them changes nothing, and a
    decision of the best episode is (floor + 1) / floor times as likely as one of the worst.

    Drawn by rejection: a decision chosen uniformly is kept with probability (floor + ..) / (floor + 1). That is the
    same distribution, needs nothing recomputed when R_min or R_max moves, and takes (floor + 1) / floor tries at worst.
    """

    def __init__(self, capacity: int, floor: float) -> None:
        """`capacity` in decisions; `floor` > 0, the weight per decision of the worst episode (the best: floor + 1)."""
        self._floor = floor
        self._return_of = np.zeros(capacity)  # float64, of the episode each decision belongs to; 0: nothing stored
        self._sorted: list[float] = []  # one return per stored episode: its ends are R_min and R_max

    def add(self, span: range, episode_return: float) -> None:
        """O(length), plus one insertion into a sorted list of episodes."""
        self._return_of[np.arange(span.start, span.stop) % len(self._return_of)] = episode_return
        insort(self._sorted, episode_return)

    def evict(self, span: range) -> None:
        """O(length), plus one deletion from a sorted list of episodes."""
        slots = np.arange(span.start, span.stop) % len(self._return_of)
        del self._sorted[bisect_left(self._sorted, self._return_of[slots[0]])]
        self._return_of[slots] = 0.0

    def draw(
        self, stored: range, batch_size: int, rng: np.random.Generator, returns: tuple[float, float] | None = None
    ) -> np.ndarray:
        """O(batch_size * (floor + 1) / floor) at worst, in expectation."""
        lowest, highest = self._sorted[0], self._sorted[-1]
        if returns:  # of all shards, but some time ago
            lowest, highest = min(lowest, returns[0]), max(highest, returns[1])
        spread = (highest - lowest) or 1.0  # all equal: every decision gets the same weight, whatever it is
        drawn = np.empty(0, np.int64)
        while len(drawn) < batch_size:
            candidates = rng.integers(stored.start, stored.stop, batch_size)
            weights = self._floor + (self._return_of[candidates % len(self._return_of)] - lowest) / spread
            kept = rng.random(batch_size) * (self._floor + 1.0) < weights
            drawn = np.concatenate([drawn, candidates[kept]])
        return drawn[:batch_size]

    def mass(self, stored: range) -> Mass:
        """O(capacity), a sum over plain numbers: recomputed, so that rounding errors never pile up."""
        if not self._sorted:
            return Mass(_log(0))
        return Mass(_log(len(stored)), (self._sorted[0], self._sorted[-1], float(self._return_of.sum()) / len(stored)))

    def state(self) -> dict[str, Any]:
        """Empty: the episodes say everything."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


class Balanced:
    """p = softmax(-visits / temperature) (transformer-world-model paper, Eq. 6): oversamples what is new.

    visits counts how often a decision was drawn as the start of a window. A batch is drawn with the visits at its
    beginning and counted at its end: one pass through the tree per batch, and a decision may repeat within a batch.

    The tree holds exp((base - visits) / temperature). Visits grow without bound, so `base` follows: when all weights
    have become tiny, or a new one would be huge, it is set to the smallest count and the tree is recomputed from the
    exact integer counts. That costs O(capacity), but first every stored decision, the newest too, must have been drawn
    some 230 temperatures times.
    """

    _TINY = 1e-100
    _HUGE_EXPONENT = 500.0  # e^500 is 1e217: room for capacity of them, and far above _TINY, so the two never alternate

    def __init__(self, capacity: int, temperature: float) -> None:
        """`capacity` in decisions; `temperature` > 0 in visits."""
        self._temperature = temperature
        self._visits = np.full(capacity, -1, np.int64)  # -1: nothing stored
        self._base = 0
        self._tree = SumTree(capacity)

    def add(self, span: range, episode_return: float) -> None:
        """O(length * log capacity): the new decisions have not been visited."""
        slots = np.arange(span.start, span.stop) % len(self._visits)
        self._visits[slots] = 0
        if self._base / self._temperature > self._HUGE_EXPONENT:
            self._rebase()
        else:
            self._tree.set(slots, self._weight(self._visits[slots]))

    def evict(self, span: range) -> None:
        """O(length * log capacity)."""
        slots = np.arange(span.start, span.stop) % len(self._visits)
        self._visits[slots] = -1
        self._tree.set(slots, 0.0)

    def draw(
        self, stored: range, batch_size: int, rng: np.random.Generator, returns: tuple[float, float] | None = None
    ) -> np.ndarray:
        """O(batch_size * log capacity); counts one visit per draw."""
        self._keep_in_range()
        slots = self._tree.find(rng.random(batch_size) * self._tree.total)
        np.add.at(self._visits, slots, 1)
        self._tree.set(slots, self._weight(self._visits[slots]))
        return stored.start + (slots - stored.start) % len(self._visits)

    def mass(self, stored: range) -> Mass:
        """The sum of exp(-visits / temperature), whatever the base."""
        if not stored:
            return Mass(_log(0))
        self._keep_in_range()
        return Mass(_log(self._tree.total) - self._base / self._temperature)

    def state(self) -> dict[str, Any]:
        """The counts, in ring order, and the base they are weighed against."""
        return {"base": self._base, "visits": self._visits.astype("<i8").tobytes()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over the counts; the tree follows from them. ValueError if they are of another capacity."""
        visits = np.frombuffer(state["visits"], "<i8")
        if len(visits) != len(self._visits):
            raise ValueError(f"visit counts: got {len(visits)}, want one per decision of capacity {len(self._visits)}")
        self._base = state["base"]
        self._visits[:] = visits
        self._fill()

    def _keep_in_range(self) -> None:
        """Make sure that the sum of the weights is a number to work with."""
        if self._tree.total < self._TINY:
            self._rebase()

    def _rebase(self) -> None:
        """Weigh against the smallest count, so that the largest weight is exactly 1."""
        self._base = int(self._visits[self._visits >= 0].min())
        self._fill()

    def _fill(self) -> None:
        stored = self._visits >= 0
        weights = np.zeros(len(self._visits))
        weights[stored] = self._weight(self._visits[stored])
        self._tree.fill(weights)

    def _weight(self, visits: np.ndarray) -> np.ndarray:
        return np.exp((self._base - visits) / self._temperature)


def _log(weight: float) -> float:
    return math.log(weight) if weight else -math.inf
