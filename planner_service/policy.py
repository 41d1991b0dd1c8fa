"""Policies: what chooses actions for E environments at once, episode by episode.

`MPCPolicy` plans (Algorithm 2); `GreedyPolicy` is the paper's QT ablation. Both own their copy of the networks, in
eval mode, and take new weights between decisions.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from pydantic import Field
from torch import nn

from common.config import Config
from common.qt import QT
from common.seeding import derive_seed
from common.weights import Weights
from planner_service.planner import Planner, PlanState, draw_noise


class EpsilonConfig(Config):
    """The QT ablation's epsilon-greedy collecting: chance of a uniform action, falling linearly."""

    start: float = Field(default=1.0, ge=0, le=1)
    end: float = Field(default=0.01, ge=0, le=1)
    share: float = Field(default=0.3, gt=0, le=1)
    """share of the training after which `end` is reached"""

    def at(self, progress: float) -> float:
        """Epsilon after that share of the training."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.share)


class Policy(Protocol):
    """What actors need of a policy."""

    weights_version: int

    def load(self, weights: Weights) -> None:
        """Take new network weights."""

    def begin(self, seeds: list[int], exploration: float) -> None:
        """Start one episode in each of len(seeds) environments; exploration in [0, 1], 0 when evaluating."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """float32 [E, M] -> float32 [E, N] in [-1, 1]."""


class MPCPolicy:
    """Plans every decision. Exploration > 0 turns on the planner's own: a drawn elite, some random bins."""

    def __init__(self, planner: Planner, device: torch.device, bfloat16: bool = False) -> None:
        """bfloat16: plan under autocast."""
        self.planner, self.device, self.bfloat16 = planner, device, bfloat16
        self.networks = nn.ModuleDict({"tdm": planner.dynamics})
        if planner.value_function is not None:
            self.networks["qt"] = planner.value_function
        freeze(self.networks)
        self.weights_version = 0
        planner.prepare(device)
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.plan = torch.compile(planner.plan, mode=mode) if planner.config.compile else planner.plan

    def load(self, weights: Weights) -> None:
        weights.copy_into(self.networks)
        self.weights_version = weights.version

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.explore = exploration > 0
        self.generators = [seeded_generator(seed, self.device) for seed in seeds]
        action_dim = self.planner.dynamics.action_dim
        self.state = PlanState.initial(len(seeds), self.planner.config, action_dim, self.device)

    def act(self, observations: np.ndarray) -> np.ndarray:
        noise = draw_noise(self.generators, self.planner.config, self.planner.dynamics.action_dim)
        on_device = torch.from_numpy(observations).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            plan = self.plan(on_device, self.state, noise, self.explore)
        # Compiled, the tensors belong to a CUDA graph, whose next replay reads this state and overwrites them.
        s = plan.state
        self.state = PlanState(s.mean.clone(), s.elites.clone(), s.has_elites.clone())
        return plan.actions.cpu().numpy()


class GreedyPolicy:
    """The QT alone: its greedy action, or with probability `exploration` a uniform one."""

    def __init__(self, qt: QT, device: torch.device) -> None:
        self.qt, self.device = qt, device
        self.networks = nn.ModuleDict({"qt": qt})
        freeze(self.networks)
        self.weights_version = 0

    def load(self, weights: Weights) -> None:
        weights.copy_into(self.networks)
        self.weights_version = weights.version

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.exploration = exploration
        self.generators = [seeded_generator(seed, torch.device("cpu")) for seed in seeds]

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        bins, _ = self.qt.choose(torch.from_numpy(observations).to(self.device))  # [E, N]
        uniform = torch.stack([torch.rand(1 + self.qt.action_dim, generator=g) for g in self.generators])
        chance = uniform[:, :1].expand(-1, self.qt.action_dim)  # one draw decides for the whole action
        bins = self.qt.tokenizer.replace(bins.cpu(), chance, uniform[:, 1:], self.exploration)
        return self.qt.tokenizer.decode(bins).numpy()


class RandomPolicy:
    """Uniform actions in [-1, 1]: the seed episodes."""

    weights_version = 0

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def load(self, weights: Weights) -> None:
        """Nothing here learns."""

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.generators = [np.random.default_rng(derive_seed(seed, "random actions")) for seed in seeds]

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.stack([g.uniform(-1, 1, self.action_dim) for g in self.generators]).astype(np.float32)


def freeze(networks: nn.Module) -> None:
    """Eval mode, no gradients: a policy's networks are never trained."""
    networks.eval()
    networks.requires_grad_(False)


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own for one episode."""
    return torch.Generator(device).manual_seed(derive_seed(seed, "policy"))
