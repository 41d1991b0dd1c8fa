"""An episode: T decisions and the T+1 observations around them; what an actor hands to replay."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Episode:
    """One episode as collected. The observation after the last decision is kept, so the last transition is learned."""

    observations: np.ndarray
    """float32 [T+1, M]"""
    actions: np.ndarray
    """float32 [T, N], each in [-1, 1]"""
    rewards: np.ndarray
    """float32 [T], summed over the action repeat, in the task's own unit"""
    terminated: bool
    """True if the task itself ended after the last decision; False if a time limit did (the return goes on)."""
    env_steps: int
    """simulator steps taken, action repeat counted"""
    success: float | None = None
    """1.0 or 0.0 at the last step, None where the task defines no success"""
    actor: int = 0
    """who collected it; (actor, number) names an episode once and for all"""
    number: int = 0
    """the actor's running number of this episode, from 0"""
    oldest_weights: int = 0
    """smallest weights version any of its decisions was planned with"""
    newest_weights: int = 0
    """largest such version"""

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        got = (len(self.observations), len(self.actions), steps)
        assert steps > 0, "an episode has at least one decision"
        assert got == (steps + 1, steps, steps), f"want T+1, T, T rows, got {got}"

    @property
    def decisions(self) -> int:
        """T"""
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))

    def named(self, actor: int, number: int) -> Episode:
        """The same, under that name."""
        return replace(self, actor=actor, number=number)
