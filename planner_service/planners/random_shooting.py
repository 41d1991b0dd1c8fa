"""Random shooting: imagine many random action sequences once, execute the first action of the best.

The baseline that every planner is held against, and the planner of the generalist dynamics model. It uses nothing but
the contracts. Letters beyond the usual: J sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from qttdm.common.config import Config
from qttdm.common.contracts import DynamicsModel, Plan, ValueFunction
from qttdm.common.trees import TensorTree
from qttdm.planner_service.planners.returns import Returns, repeated, without_goal


class RandomShootingConfig(Config):
    """How sequences are drawn."""

    kind: Literal["random-shooting"] = "random-shooting"
    """one iteration, the best sequence; or mppi"""
    horizon: int = Field(default=10, gt=0)
    """H, decisions"""
    samples: int = Field(default=128, gt=0)
    """J, action sequences"""
    noise: Literal["white", "brownian"] = "white"
    """white: each step by itself; brownian: each step adds an increment to the one before"""
    std: float = Field(default=0.5, gt=0)
    """of a step (white) or of an increment (brownian), in action units; the action range is [-1, 1]"""
    compile: bool = False
    """torch.compile the whole decision as one graph, on a GPU a CUDA graph; needs a C++ compiler, minutes to start"""

    def make(
        self, discount: float, action_dim: int, dynamics: DynamicsModel, value_function: ValueFunction | None = None
    ) -> RandomShooting:
        """Make the planner with these numbers."""
        return RandomShooting(self, discount, action_dim, dynamics, value_function)


class RandomShooting:
    """One iteration; the best sequence. Exploring changes nothing: the sequences are random enough."""

    def __init__(
        self,
        config: RandomShootingConfig,
        discount: float,
        action_dim: int,
        dynamics: DynamicsModel,
        value_function: ValueFunction | None = None,
    ) -> None:
        self.config, self.discount, self.action_dim = config, discount, action_dim
        self.dynamics: DynamicsModel = dynamics
        self.value_function: ValueFunction | None = value_function

    @property
    def horizon(self) -> int:
        """H, decisions."""
        return self.config.horizon

    def begin(self, environments: int, device: torch.device, goal: Any = None) -> dict[str, Tensor]:
        """Carry the number of decisions from one to the next, int64 [E]: nothing else is needed."""
        without_goal(goal)
        return {"decisions": torch.zeros(environments, dtype=torch.int64, device=device)}

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw standard normal [E, J, H, N], each environment's from its own generator."""
        shape = (self.config.samples, self.config.horizon, self.action_dim)
        return {"normal": torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])}

    def plan(
        self,
        context: TensorTree,
        carry: TensorTree,
        noise: TensorTree,
        explore: bool | Tensor,
        more: Callable[[int], bool] | None = None,
    ) -> Plan:
        """Decide for each environment, as contracts.Planner says."""
        steps = self.config.std * noise["normal"]  # [E, J, H, N]
        if self.config.noise == "brownian":
            steps = steps.cumsum(dim=2)
        actions = self.dynamics.quantise(steps.clamp(-1, 1))
        environments, samples = actions.shape[:2]
        root = self.dynamics.start(context)
        rollout = self.dynamics.select(root, repeated(environments, samples, actions.device), self.horizon)
        returns = Returns(self.discount)
        for step in range(self.horizon):
            prediction = self.dynamics.step(rollout, actions[:, :, step].flatten(0, 1))
            returns.add(prediction.rewards, prediction.continuation_logits)
        total = returns.total
        if self.value_function is not None:
            total = total + returns.weight * self.value_function.value(self.dynamics.state(rollout))
        values, best = total.view(environments, samples).max(dim=1)  # [E]
        chosen = actions[:, :, 0].take_along_dim(best[:, None, None], dim=1).squeeze(1)  # [E, N]
        return Plan(chosen, {"decisions": carry["decisions"] + 1}, values, {}, iterations=1)
