"""Step one episode in each of E environments together with one policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qttdm.common.contracts import ArrayTree, Policy


class Lockstep:
    """The carries of E episodes that are decided for in one batch until all have ended."""

    def __init__(self, policy: Policy, seeds: Sequence[int], exploration: float) -> None:
        self.policy = policy
        self.episodes = [policy.start(seed, exploration) for seed in seeds]

    def act(self, observations: ArrayTree) -> np.ndarray:
        """Decide for all: observations by name, [E, ..] -> actions [E, N]."""
        return self.policy.decide(self.episodes, observations).actions
