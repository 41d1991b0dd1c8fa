"""Algorithm 1's schedule: how long to train, how much to learn from each decision, and when to evaluate and save."""

from __future__ import annotations

from pydantic import Field

from qttdm.common.config import Config


class TrainingConfig(Config):
    """Algorithm 1's schedule."""

    env_steps: int = Field(default=500_000, gt=0)
    """simulator steps to train for, action repeats counted"""
    seed_decisions: int = Field(default=2_000, ge=1)
    """uniformly random decisions at the start; no updates before they are collected"""
    update_ratio: float = Field(default=1.0, gt=0)
    """updates per decision"""
    eval_every: int = Field(default=10_000, gt=0)
    """simulator steps between evaluations"""
    eval_episodes: int = Field(default=10, gt=0)
    """episodes of each evaluation"""
    checkpoint_every: int = Field(default=50_000, gt=0)
    """simulator steps between checkpoints; there is one more at the end and at Ctrl-C"""
    keep_checkpoints: int = Field(default=3, gt=0)
    """newest checkpoints that are kept"""
    log_every: int = Field(default=250, gt=0)
    """updates between two looks at the losses, at most: one wait for the device each"""
