"""Which decision a window starts at: two samplers with one interface.

Decisions carry running numbers that are never reused. Stored ones are always one range of at most `capacity` numbers:
episodes join at its upper end and leave at its lower. So per-decision values live in rings, at number % capacity.

Several samplers of one kind, each with a share of the episodes, draw as one would that had them all:

    fractions = shares([sampler.mass(..) for each])     on masses of one moment
    counts = rng.multinomial(batch_size, fractions)     how many each draws
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qttdm.replay.sum_tree import SumTree


def shares(masses: Sequence[float]) -> np.ndarray:
    """Return fractions [number of masses] of a batch that each sampler must draw. ValueError if nothing is stored.

    Masses are logs, because `balanced` weighs each sampler's decisions against a base of its own, and differences of
    bases may have exponentials beyond any float.
    """
    logs = np.array(masses)
    if not (logs > -np.inf).any():
        raise ValueError(f"shares: got {len(logs)} samplers that hold nothing, want at least one decision")
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


class Uniform:
    """Every stored decision is as likely as any other. The interface of samplers, and one that need not count.

    `stored` and `span` are ranges of decision numbers.
    """

    def add(self, span: range) -> None:
        """Take in the decisions of an episode that joins."""

    def evict(self, span: range) -> None:
        """Forget the decisions of the oldest episode, which leaves."""

    def draw(self, stored: range, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw int64 [batch_size] decision numbers, drawn with replacement from the non-empty range `stored`."""
        return rng.integers(stored.start, stored.stop, batch_size)

    def mass(self, stored: range) -> float:
        """Log of the weight of the range `stored`, all that was added and not evicted; -inf if it is empty."""
        return _log(len(stored))

    def state(self) -> dict[str, Any]:
        """Return what cannot be rebuilt by adding the stored episodes again: plain values and bytes."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over `state()` of an equal sampler, after the same episodes were added."""


class Balanced(Uniform):
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

    def add(self, span: range) -> None:
        """Add decisions that have not been visited: O(length * log capacity)."""
        slots = np.arange(span.start, span.stop) % len(self._visits)
        self._visits[slots] = 0
        if self._base / self._temperature > self._HUGE_EXPONENT:
            self._rebase()
        else:
            self._tree.set(slots, self._weight(self._visits[slots]))

    def evict(self, span: range) -> None:
        """Forget evicted decisions: O(length * log capacity)."""
        slots = np.arange(span.start, span.stop) % len(self._visits)
        self._visits[slots] = -1
        self._tree.set(slots, 0.0)

    def draw(self, stored: range, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw, and count one visit for each: O(batch_size * log capacity)."""
        self._keep_in_range()
        slots = self._tree.find(rng.random(batch_size) * self._tree.total)
        np.add.at(self._visits, slots, 1)
        self._tree.set(slots, self._weight(self._visits[slots]))
        return stored.start + (slots - stored.start) % len(self._visits)

    def mass(self, stored: range) -> float:
        """Sum exp(-visits / temperature), for any base."""
        if not stored:
            return -math.inf
        self._keep_in_range()
        return _log(self._tree.total) - self._base / self._temperature

    def state(self) -> dict[str, Any]:
        """Return the counts, in ring order, and the base they are weighed against."""
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
