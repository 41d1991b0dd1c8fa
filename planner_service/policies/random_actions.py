"""Act at random: the seed episodes."""

from __future__ import annotations

import numpy as np

from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights
from qttdm.planner_service.policies.policy import Decisions


class RandomPolicy:
    """Uniform actions in [-1, 1]: the seed episodes."""

    weights_version = 0
    decided: Decisions | None = None

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def load(self, weights: Weights) -> None:
        """Nothing here learns."""

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.generators = [np.random.default_rng(derive_seed(seed, "random actions")) for seed in seeds]

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.stack([g.uniform(-1, 1, self.action_dim) for g in self.generators]).astype(np.float32)
