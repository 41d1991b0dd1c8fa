"""Act at random: the seed episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from qttdm.common.contracts import ArrayTree, DataSpec, Decisions
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights


class RandomPolicy:
    """Uniform actions: in [-1, 1], or one of the choices."""

    weights_version, device = 0, torch.device("cpu")

    def __init__(self, data: DataSpec) -> None:
        self.data, self.networks = data, nn.ModuleDict()

    def load(self, weights: Weights) -> None:
        """Leave the weights: nothing here learns."""

    def warm_up(self, environments: int) -> None:
        """Prepare nothing."""

    def start(self, seed: int, exploration: float, goal: Any = None) -> np.random.Generator:
        """Make the generator of one episode."""
        return np.random.default_rng(derive_seed(seed, "random actions"))

    def decide(
        self, episodes: Sequence[np.random.Generator], observations: ArrayTree, deadline: float | None = None
    ) -> Decisions:
        """Draw an action for each episode."""
        actions, choices = self.data.actions, self.data.choices
        drawn = [
            g.uniform(-1, 1, actions.shape) if choices is None else g.integers(choices, size=actions.shape)
            for g in episodes
        ]
        return Decisions(np.stack(drawn).astype(actions.dtype), np.zeros(len(episodes), np.float32))
