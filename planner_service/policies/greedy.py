"""Act by the Q-Transformer alone: the paper's QT ablation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import nn

from qttdm.common.config import Config
from qttdm.common.models.qt import QT
from qttdm.common.weights import Weights
from qttdm.planner_service.policies.policy import Decisions, EpisodeState, freeze, seeded_generator


class EpsilonConfig(Config):
    """The QT ablation's epsilon-greedy collecting: chance of a uniform action, falling linearly."""

    start: float = Field(default=1.0, ge=0, le=1)
    end: float = Field(default=0.01, ge=0, le=1)
    share: float = Field(default=0.3, gt=0, le=1)
    """share of the training after which `end` is reached"""

    def at(self, progress: float) -> float:
        """Epsilon after that share of the training."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.share)


class GreedyPolicy:
    """The QT alone: its greedy action, or with probability `exploration` a uniform one."""

    def __init__(self, qt: QT, device: torch.device) -> None:
        self.qt, self.device = qt, device
        self.networks = nn.ModuleDict({"qt": qt})
        freeze(self.networks)
        self.weights_version = 0
        self.decided: Decisions | None = None

    def load(self, weights: Weights) -> None:
        weights.copy_into(self.networks)
        self.weights_version = weights.version

    def start(self, seed: int, exploration: float) -> EpisodeState:
        """Of an episode, at its start."""
        return EpisodeState(seeded_generator(seed, torch.device("cpu")), exploration)

    def warm_up(self, environments: int) -> None:
        """Decide once for so many."""
        episodes = [self.start(seed, 0.0) for seed in range(environments)]
        self.decide(episodes, np.zeros((environments, self.qt.obs_dim), np.float32))

    @torch.no_grad()
    def decide(
        self, episodes: Sequence[EpisodeState], observations: np.ndarray, deadline: float | None = None
    ) -> Decisions:
        """One decision for each episode, in which it moves on: observations float32 [E, M]. It has no iterations, so
        that a deadline changes nothing."""
        bins, values = self.qt.choose(torch.from_numpy(observations).to(self.device))  # [E, N], [E]
        uniform = torch.stack([torch.rand(1 + self.qt.action_dim, generator=e.generator) for e in episodes])
        chance = uniform[:, :1].expand(-1, self.qt.action_dim)  # one draw decides for the whole action
        exploration = torch.tensor([[e.exploration] for e in episodes])  # [E, 1]
        bins = self.qt.tokenizer.replace(bins.cpu(), chance, uniform[:, 1:], exploration)
        nothing = np.zeros(len(episodes), np.float32)
        actions = self.qt.tokenizer.decode(bins).numpy()
        return Decisions(actions, values.float().cpu().numpy(), iterations=0, terminal=nothing, std=nothing)

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.episodes = [self.start(seed, exploration) for seed in seeds]

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.decided = self.decide(self.episodes, observations)
        return self.decided.actions
