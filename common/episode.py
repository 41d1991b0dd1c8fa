"""An episode: T decisions and the T+1 observations around them; what an actor hands to replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np


class EnvironmentFailure(Exception):  # noqa: N818 - a simulation fails; the one line says which, where and why
    """An environment raised, or answered with an array of another shape or not finite; its error is the cause.

    No RuntimeError: contextlib takes one with a StopIteration as its cause for that, and lets the original out.
    """


@dataclass(frozen=True)
class Episode:
    """One episode as collected. The observation after the last decision is kept, so the last transition is learned."""

    observations: np.ndarray
    """what the task shows: float32 [T+1, M], or uint8 [T+1, ..] of an image"""
    actions: np.ndarray
    """float32 [T, N], each in [-1, 1]; or int64 [T] (or [T, N]) in [0, choices)"""
    rewards: np.ndarray
    """float32 [T], summed over the action repeat, in the task's own unit"""
    terminated: bool
    """True if the task itself ended after the last decision; False if a time limit did (the return goes on)."""
    env_steps: int
    """simulator steps taken, action repeat counted"""
    success: float | None = None
    """1.0 or 0.0 at the last step, None where the task defines no success"""
    actor: int = 0
    """number of the actor that collected it; (actor, number) is the name of an episode"""
    number: int = 0
    """the actor's running number of this episode, from 0"""
    oldest_weights: int = 0
    """smallest weights version any of its decisions was planned with"""
    newest_weights: int = 0
    """largest such version"""
    truncated: bool = False
    """True if a time limit or its collector ended it after the last decision"""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """other observations by name, T+1 rows each, such as `simulator_state`"""

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        got = (len(self.observations), len(self.actions), steps)
        assert steps > 0, "an episode has at least one decision"
        assert got == (steps + 1, steps, steps), f"want T+1, T, T rows, got {got}"
        for name, array in self.extra.items():
            assert len(array) == steps + 1, f"{name}: want T+1 = {steps + 1} rows, got {len(array)}"

    @property
    def decisions(self) -> int:
        """T"""
        return len(self.rewards)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name: observations, actions, rewards, then the others."""
        return {"observations": self.observations, "actions": self.actions, "rewards": self.rewards, **self.extra}

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))

    def named(self, actor: int, number: int) -> Episode:
        """Copy the episode under another name."""
        return replace(self, actor=actor, number=number)
