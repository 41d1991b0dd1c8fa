"""Act by a value function or an actor alone, without planning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import ArrayTree, DataSpec, Decisions, Policy, ValueFunction
from qttdm.planner_service.policies.planning import (
    NetworkPolicy,
    PlanningPolicy,
    blank_observations,
    on_device,
    seeded_generator,
)


class EpsilonConfig(Config):
    """Epsilon-greedy collecting: chance of a uniform action, falling linearly."""

    start: float = Field(default=1.0, ge=0, le=1)
    """chance at the start of the training"""
    end: float = Field(default=0.01, ge=0, le=1)
    """chance at last"""
    share: float = Field(default=0.3, gt=0, le=1)
    """share of the training after which `end` is reached"""

    def at(self, progress: float) -> float:
        """Return epsilon after that share of the training."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.share)


@dataclass
class GreedyEpisode:
    """What one episode carries from decision to decision."""

    generator: torch.Generator
    exploration: float
    """chance of a uniform action, or of one drawn from the actor"""
    images: list[np.ndarray] = field(default_factory=list)
    """the newest observations, where the agent looks at several"""

    def see(self, image: np.ndarray, stack: int) -> np.ndarray:
        """Take in an image [.., C] and return the newest ones [.., stack C]; the first one stands for those before."""
        self.images = [*(self.images or [image] * (stack - 1)), image][-stack:]
        return np.concatenate(self.images, axis=-1)


class GreedyPolicy(NetworkPolicy):
    """The value function's best action, or with probability `exploration` a uniform one."""

    def __init__(
        self, value_function: ValueFunction, networks: nn.ModuleDict, data: DataSpec, device: torch.device
    ) -> None:
        """networks: the value function's, in the learner's order."""
        super().__init__(networks, data, device)
        self.value_function = value_function

    def warm_up(self, environments: int) -> None:
        """Decide once for so many."""
        self.decide(
            [self.start(seed, 0.0) for seed in range(environments)], blank_observations(self.data, environments)
        )

    def start(self, seed: int, exploration: float, goal: Any = None) -> GreedyEpisode:
        """Make the carry of one episode. ValueError if it is to reach a goal."""
        if goal is not None:
            raise ValueError("goal: got one, and this policy looks for return; want a planner that takes goals")
        return GreedyEpisode(seeded_generator(seed, torch.device("cpu")), exploration)

    @torch.no_grad()
    def decide(
        self, episodes: Sequence[GreedyEpisode], observations: ArrayTree, deadline: float | None = None
    ) -> Decisions:
        """Decide once for each episode; there are no iterations that a deadline could end."""
        numbers = math.prod(self.data.actions.shape)  # of an action; 1 for a choice
        uniform = torch.stack([torch.rand(1 + numbers, generator=e.generator) for e in episodes]).to(self.device)
        chance = uniform[:, :1].expand(-1, numbers)  # one draw decides for the whole action
        chance, which = (u.reshape(-1, *self.data.actions.shape) for u in (chance, uniform[:, 1:]))
        probability = torch.tensor([e.exploration for e in episodes], device=self.device)  # [E]
        if (stack := self.data.stack) > 1:
            pairs = zip(episodes, observations["observations"], strict=True)
            observations = {"observations": np.stack([episode.see(image, stack) for episode, image in pairs])}
        context = on_device(observations, self.device)
        actions, values = self.value_function.propose(context, chance, which, probability)
        return Decisions(actions.cpu().numpy(), values.float().cpu().numpy())


def greedy_beside(policy: Policy) -> GreedyPolicy | None:
    """Make the greedy policy of a planning policy's value function, with its networks; None if it has none."""
    if isinstance(policy, PlanningPolicy) and policy.planner.value_function is not None:
        return GreedyPolicy(policy.planner.value_function, policy.networks, policy.data, policy.device)
    return None
