"""Act at random: the seed episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qttdm.common.contracts import ArrayTree, DataSpec, Decisions, RandomActions
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights

HOLDS = (1, 2, 4, 8, 16)
"""decisions for which an action may be held"""


@dataclass
class RandomEpisode:
    """Where one episode stands."""

    generator: np.random.Generator
    action: NDArray[Any] | None = None
    """held for `left` more decisions"""
    left: int = 0


class RandomPolicy:
    """Uniform actions: in [-1, 1], or one of the choices.

    `held` goes on with an action for as many decisions as is drawn from HOLDS, and half of its continuous actions are
    extremes, -1 or 1 in each dimension: what is drawn anew each time hardly moves a body, and seldom meets a reward.
    """

    weights_version, device = 0, torch.device("cpu")

    def __init__(self, data: DataSpec, kind: RandomActions = "independent") -> None:
        self.data, self.kind, self.networks = data, kind, nn.ModuleDict()

    def load(self, weights: Weights) -> None:
        """Leave the weights: nothing here learns."""

    def warm_up(self, environments: int) -> None:
        """Prepare nothing."""

    def start(self, seed: int, exploration: float, goal: Any = None) -> RandomEpisode:
        """Make the generator of one episode."""
        return RandomEpisode(np.random.default_rng(derive_seed(seed, "random actions")))

    def decide(
        self, episodes: Sequence[RandomEpisode], observations: ArrayTree, deadline: float | None = None
    ) -> Decisions:
        """Draw an action for each episode, or hold the last."""
        drawn = np.stack([self._next(episode) for episode in episodes])
        return Decisions(drawn.astype(self.data.actions.dtype), np.zeros(len(episodes), np.float32))

    def _next(self, episode: RandomEpisode) -> NDArray[Any]:
        if episode.action is None or episode.left == 0:
            episode.action = self._draw(episode.generator)
            episode.left = 1 if self.kind == "independent" else int(episode.generator.choice(HOLDS))
        episode.left -= 1
        return episode.action

    def _draw(self, generator: np.random.Generator) -> NDArray[Any]:
        shape, choices = self.data.actions.shape, self.data.choices
        if choices is not None:
            return generator.integers(choices, size=shape)
        action = generator.uniform(-1, 1, shape)
        return np.sign(action) if self.kind == "held" and generator.random() < 0.5 else action
