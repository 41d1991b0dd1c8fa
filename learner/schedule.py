"""Algorithm 1's schedule: how long to train, how much to learn from each decision, and when to evaluate and save."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from qttdm.common.config import Config
from qttdm.common.contracts import RandomActions


class TrainingConfig(Config):
    """Algorithm 1's schedule."""

    start_from: Path | None = None
    """a run whose networks are learned on from, with all that was fitted for them; null: fresh ones"""
    dataset: str | None = None
    """a Minari data set, by its id or folder, whose episodes are in replay before the first update; null: none"""
    dataset_episodes: int | None = Field(default=None, gt=0)
    """so many episodes of each data set, drawn by the seed; null: all"""
    shares: dict[str, float] = Field(default_factory=dict)
    """of an agent that learns from many data sets: how often each is drawn, against 1 of those that are not named"""
    offline_updates: int = Field(default=0, ge=0)
    """updates made on the data set before the first own episode"""
    env_steps: int = Field(default=500_000, ge=0)
    """simulator steps to train for, action repeats counted; 0: learn from the data set alone"""
    seed_decisions: int = Field(default=2_000, ge=1)
    """random decisions at the start; no updates before they are collected"""
    random_actions: RandomActions = "independent"
    """these are drawn anew each time, as in the paper; or held for 1 to 16 decisions, half of them extremes"""
    update_ratio: float = Field(default=1.0, gt=0)
    """updates per decision"""
    eval_every: int = Field(default=10_000, gt=0)
    """simulator steps between evaluations; while learning offline, updates"""
    eval_episodes: int = Field(default=10, ge=0)
    """episodes of each evaluation; 0: no evaluations, where there is no simulator"""
    checkpoint_every: int = Field(default=50_000, gt=0)
    """simulator steps between checkpoints, or offline updates; there is one more at the end and at Ctrl-C"""
    keep_checkpoints: int = Field(default=3, gt=0)
    """newest checkpoints that are kept"""
    log_every: int = Field(default=250, gt=0)
    """updates between two looks at the losses, at most: one wait for the device each"""

    @property
    def steps(self) -> int:
        """All that is to be done: offline updates and simulator steps."""
        return self.offline_updates + self.env_steps

    def steps_done(self, env_steps: int, updates: int) -> int:
        """Count what is done of `steps`."""
        return min(updates, self.offline_updates) + env_steps
