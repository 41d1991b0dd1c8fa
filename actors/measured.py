"""Measure what a policy decides and what that costs; the actions are the policy's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from qttdm.common.contracts import ArrayTree, Decisions, Policy
from qttdm.common.metrics.telemetry import Telemetry, TimeSpent
from qttdm.common.weights import Weights
from qttdm.planner_service.policies.metrics import APPLY_SECONDS, DECISION_SECONDS, DECISIONS


class MeasuredPolicy:
    """Another policy, with its decisions reported."""

    def __init__(self, policy: Policy, telemetry: Telemetry, time_spent: TimeSpent | None = None) -> None:
        self.policy, self.telemetry, self.time_spent = policy, telemetry, time_spent

    @property
    def networks(self) -> nn.Module:
        """The policy's."""
        return self.policy.networks

    @property
    def device(self) -> torch.device:
        """The policy's."""
        return self.policy.device

    @property
    def weights_version(self) -> int:
        """The policy's."""
        return self.policy.weights_version

    def load(self, weights: Weights) -> None:
        """Take new network weights."""
        with self.telemetry.timed(APPLY_SECONDS):
            self.policy.load(weights)

    def warm_up(self, environments: int) -> None:
        """As the policy."""
        self.policy.warm_up(environments)

    def start(self, seed: int, exploration: float, goal: Any = None) -> Any:
        """Make the carry of one episode; those of a batch are started together."""
        return self.policy.start(seed, exploration, goal)

    def decide(self, episodes: Sequence[Any], observations: ArrayTree, deadline: float | None = None) -> Decisions:
        """As the policy."""
        started = time.perf_counter()
        with self.time_spent.on("planning") if self.time_spent is not None else nullcontext():
            decided = self.policy.decide(episodes, observations, deadline)
        t, seconds = self.telemetry, time.perf_counter() - started
        t.observe(DECISION_SECONDS, seconds, stage="total")
        t.inc(DECISIONS, len(episodes))
        if decided.figures:  # planned here, not by a service
            t.observe(DECISION_SECONDS, seconds, stage="plan")
        return decided
