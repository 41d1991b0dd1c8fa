"""A policy that tells what it decides and what that costs; the actions are the policy's own."""

from __future__ import annotations

import time

import numpy as np

from qttdm.common.metrics.telemetry import Activities, Telemetry
from qttdm.common.weights import Weights, updates_of
from qttdm.planner_service.measure import tell_plan
from qttdm.planner_service.policies.policy import Decisions, Policy


class MeasuredPolicy:
    """Another policy, seen from outside."""

    def __init__(self, policy: Policy, telemetry: Telemetry, time_spent: Activities | None = None) -> None:
        self.policy, self.telemetry, self.time_spent = policy, telemetry, time_spent
        self.decided: Decisions | None = None
        self.promised: list[np.ndarray] = []
        """of the episodes under way, the values [E] of each decision so far"""

    @property
    def weights_version(self) -> int:
        """The policy's."""
        return self.policy.weights_version

    def load(self, weights: Weights) -> None:
        """Take new network weights."""
        with self.telemetry.timed("qttdm_weights_apply_seconds"):
            self.policy.load(weights)
        self.telemetry.set("qttdm_weights_updates", updates_of(weights.version))

    def begin(self, seeds: list[int], exploration: float) -> None:
        """Start one episode in each environment."""
        self.promised = []
        self.policy.begin(seeds, exploration)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """float32 [E, M] -> float32 [E, N] in [-1, 1]."""
        started = time.perf_counter()
        if self.time_spent is None:
            actions = self.policy.act(observations)
        else:
            with self.time_spent.on("planning"):
                actions = self.policy.act(observations)
        t, seconds = self.telemetry, time.perf_counter() - started
        t.observe("qttdm_decision_seconds", seconds, stage="total")
        t.inc("qttdm_acted_total", len(observations))
        self.decided = decided = self.policy.decided
        if decided is not None:  # decided here, not by a service
            t.observe("qttdm_decision_seconds", seconds, stage="plan")
            self.promised.append(decided.values)
            tell_plan(t, decided)
        return actions
