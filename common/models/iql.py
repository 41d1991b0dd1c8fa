"""Implicit Q-learning's networks (Kostrikov et al., 2021): V(s), two Q(s, a), and a Gaussian policy, all small MLPs.

Inside, rewards are multiplied by `reward_scale`, which is fitted to the data; what is returned is in the task's unit.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.models.scale import ObservationScale
from qttdm.common.models.transformer import outside_autocast
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree

LOG_STD = (-5.0, 2.0)
"""bounds of the policy's log standard deviation, the published code's"""


class IQLConfig(Config):
    """Size of each of the four MLPs; defaults are the paper's."""

    width: int = Field(default=256, gt=0)
    """of a hidden layer"""
    layers: int = Field(default=2, gt=0)
    """hidden ones"""


class Critics(nn.Module):
    """Two functions Q(s, a) that err apart."""

    def __init__(self, config: IQLConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(mlp(config, obs_dim + action_dim, 1) for _ in range(2))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Value actions: scaled states [.., M], actions [.., N] -> [2, ..]."""
        both = torch.cat([states, actions], dim=-1)
        return torch.stack([head(both).squeeze(-1) for head in self.heads])


class Actor(nn.Module):
    """A Gaussian with a mean in [-1, 1] and a standard deviation that does not depend on the state."""

    def __init__(self, config: IQLConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.trunk = mlp(config, obs_dim, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, states: Tensor) -> Tensor:
        """Return the mean action: scaled states [.., M] -> [.., N]."""
        return self.trunk(states).tanh()

    @property
    def std(self) -> Tensor:
        """[N]"""
        return self.log_std.clamp(*LOG_STD).exp()

    def log_prob(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the log density of actions [.., N] in scaled states [.., M]: [..]."""
        off = (actions - self(states)) / self.std
        return (-0.5 * off.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


class IQL(nn.Module):
    """All that the learner trains; to a policy or a planner it is a ValueFunction (common/contracts.py)."""

    def __init__(self, config: IQLConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.scale = ObservationScale(obs_dim)
        self.reward_scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.values = mlp(config, obs_dim, 1)
        self.critics = Critics(config, obs_dim, action_dim)
        self.actor = Actor(config, obs_dim, action_dim)

    def act(self, observations: Tensor) -> Tensor:
        """Return the mean action: [B, M] -> [B, N]."""
        return self.actor(self.scale(observations))

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Value actions by the lower of both Qs, the reward of the step itself included: [B, M], [B, N] -> [B]."""
        with outside_autocast(observations.device):  # bfloat16 would round values to a few digits
            q = self.critics(self.scale(observations.float()), actions.float())
            return q.amin(dim=0) / self.reward_scale

    def value(self, state: TensorTree) -> Tensor:
        """Return V(s) [B] of `observations` [B, M]."""
        check_shape(observations := state["observations"], "B M", M=self.obs_dim)
        with outside_autocast(observations.device):
            return self.values(self.scale(observations.float())).squeeze(-1) / self.reward_scale

    def propose(
        self, state: TensorTree, chance: Tensor, which: Tensor, probability: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Propose mean actions [B, N], and values [B]: contracts.ValueFunction.

        Where chance < probability the action is drawn from the policy instead, by the quantile `which`.
        """
        observations = state["observations"]
        if isinstance(probability, Tensor):
            probability = probability.unsqueeze(-1)
        with outside_autocast(observations.device):
            mean = self.act(observations.float())
            normal = math.sqrt(2.0) * torch.erfinv(2.0 * which - 1.0)
            drawn = (mean + self.actor.std * normal).clamp(-1.0, 1.0)
            return torch.where(chance < probability, drawn, mean), self.value(state)


def mlp(config: IQLConfig, inputs: int, outputs: int) -> nn.Sequential:
    """Make an MLP with ReLU."""
    sizes = [inputs, *[config.width] * config.layers]
    hidden = [layer for i in range(config.layers) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))
