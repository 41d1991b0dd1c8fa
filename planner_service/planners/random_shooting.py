"""Random shooting: imagine many random action sequences once, execute the first action of the best.

The baseline that every planner is held against, and the planner of the generalist dynamics model. It uses nothing but
the contracts; to a RememberingModel it also shows the last steps, and mixes in what that model's policy proposes.
Letters beyond the usual: J sequences, C steps of context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qttdm.common.config import Config, ConfigError
from qttdm.common.contracts import DynamicsModel, Plan, RememberingModel, ValueFunction
from qttdm.common.trees import TensorTree
from qttdm.planner_service.planners.history import no_history, plan_alike, recent, remember
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
    start: Literal["zero", "uniform"] = "zero"
    """of brownian noise: at 0 and clipped to the box; or uniform in the box and reflected at its edges, so that every
    step covers it"""
    proposals: int = Field(default=0, ge=0)
    """sequences, of the samples, whose actions are the model's own policy's and noise; for models that have one"""
    proposal_std: float = Field(default=0.2, ge=0)
    """of that noise, white, in action units"""
    context: int = Field(default=0, ge=0)
    """C, steps before the newest observation that a model with a memory is given"""
    compile: bool = False
    """torch.compile the whole decision as one graph, on a GPU a CUDA graph; needs a C++ compiler, minutes to start"""

    def make(
        self, discount: float, action_dim: int, dynamics: DynamicsModel, value_function: ValueFunction | None = None
    ) -> RandomShooting:
        """Make the planner with these numbers."""
        return RandomShooting(self, discount, action_dim, dynamics, value_function)

    @model_validator(mode="after")
    def _fits(self) -> RandomShootingConfig:
        if self.proposals > self.samples:
            raise ValueError(f"proposals={self.proposals} are some of samples={self.samples}; want at most as many")
        return self


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
        self.memory = dynamics if isinstance(dynamics, RememberingModel) else None
        if self.memory is None and (config.proposals or config.context):
            raise ConfigError(
                f"planner.proposals={config.proposals}, planner.context={config.context}: this model has no memory of "
                f"an episode and no policy of its own; want 0 of both"
            )

    @property
    def horizon(self) -> int:
        """H, decisions."""
        return self.config.horizon

    def begin(self, environments: int, device: torch.device, goal: Any = None) -> dict[str, Tensor]:
        """Carry the last C steps, as a model with a memory made them."""
        without_goal(goal)
        return no_history(environments, self.config.context, 0 if self.memory is None else self.memory.slots, device)

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw standard normal [E, J, H, N], each environment's from its own generator."""
        c = self.config
        shapes = {"normal": (c.samples, c.horizon, self.action_dim)}
        if c.proposals:
            shapes["proposal"] = (c.proposals, c.horizon, self.action_dim)
        drawn = [{n: torch.randn(s, generator=g, device=g.device) for n, s in shapes.items()} for g in generators]
        return {name: torch.stack([one[name] for one in drawn]) for name in shapes}

    def sequences(self, normal: Tensor) -> Tensor:
        """Turn standard normal numbers [.., H, N] into actions in the box."""
        c = self.config
        if c.noise == "white":
            return (c.std * normal).clamp(-1, 1)
        if c.start == "zero":
            return (c.std * normal).cumsum(dim=-2).clamp(-1, 1)
        first = torch.erf(normal[..., :1, :] / 2**0.5)  # uniform in the box
        walk = torch.cat([first, c.std * normal[..., 1:, :]], dim=-2).cumsum(dim=-2)
        return 1 - ((walk + 1) % 4 - 2).abs()  # back and forth between the edges

    def plan(
        self,
        context: TensorTree,
        carry: TensorTree,
        noise: TensorTree,
        explore: bool | Tensor,
        more: Callable[[int], bool] | None = None,
    ) -> Plan:
        """Decide for each environment, as contracts.Planner says."""
        if not self.config.context:
            return self._plan(context, carry, noise)
        return plan_alike(self._plan, carry["steps"], context, carry, noise)

    def _plan(self, context: TensorTree, carry: TensorTree, noise: TensorTree, steps: int = 0) -> Plan:
        """Decide for environments of whose episodes as many steps are remembered."""
        actions = self.dynamics.quantise(self.sequences(noise["normal"]))  # [E, J, H, N]
        environments, samples = actions.shape[:2]
        root = self.dynamics.start({**context, "history": recent(carry, steps)} if steps else context)
        rollout = self.dynamics.select(root, repeated(environments, samples, actions.device), self.horizon)
        returns = Returns(self.discount)
        first = actions[:, :, 0]
        proposals = self.config.proposals
        if proposals:
            proposed = (torch.arange(samples, device=actions.device) < proposals).repeat(environments)  # [E J]
            moved = self.config.proposal_std * noise["proposal"]
            moved = torch.cat([moved, moved.new_zeros(environments, samples - proposals, *moved.shape[2:])], dim=1)
        for step in range(self.horizon):
            taken = actions[:, :, step].flatten(0, 1)
            if proposals:
                assert self.memory is not None
                taken, prediction = self.memory.act(rollout, taken, moved[:, :, step].flatten(0, 1), proposed)
                first = taken.view(environments, samples, -1) if step == 0 else first
            else:
                prediction = self.dynamics.step(rollout, taken)
            returns.add(prediction.rewards, prediction.continuation_logits)
        total = returns.total
        if self.value_function is not None:
            total = total + returns.weight * self.value_function.value(self.dynamics.state(rollout))
        values, best = total.view(environments, samples).max(dim=1)  # [E]
        chosen = first.take_along_dim(best[:, None, None], dim=1).squeeze(1)  # [E, N]
        if self.config.context:
            assert self.memory is not None
            carry = remember(carry, self.memory.remember(root, chosen))
        return Plan(chosen, carry, values, {}, iterations=1)
