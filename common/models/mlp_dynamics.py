"""An MLP as a dynamics model: one step at a time, without memory. One network, or an ensemble of probabilistic ones.

The baselines that models with a memory are held against: a plain MLP; one that predicts the change of the observation;
either with each number read as a token; PETS (Chua et al., 2018), Gaussians from several networks, members, through
which an imagined sequence goes as several particles. A particle keeps its member to the end (TS-infinity), and a
sequence's reward is the particles' mean.

Choice: particles draw from a fixed table of normal numbers, the same for all sequences and decisions. Why: actions then
tell sequences apart, not luck, and a plan does not depend on the company. What would change it: a planner that hands
random numbers to its model.

Letters beyond the usual: P particles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.models.box import BoxActions
from qttdm.common.models.scale import ObservationScale, Unit
from qttdm.common.models.tokens import ScalarTokens
from qttdm.common.models.transformer import outside_autocast
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree

LOG_VARIANCE = (-10.0, 0.5)
"""soft bounds, of what is predicted in its own standard deviation: where PETS's begin, which then are learned"""
EMBEDDED = 32
"""features of a number that is read as a bin"""
STEPS = 64
"""after which the table of normal numbers repeats"""


class MLPDynamicsConfig(Config):
    """Size of the MLP, and what it predicts. PETS: members 5, particles 20, probabilistic, predict_change."""

    width: int = Field(default=400, gt=0)
    """of a hidden layer"""
    layers: int = Field(default=2, gt=0)
    """hidden ones"""
    members: int = Field(default=1, gt=0)
    """networks, which differ by their first weights and by the transitions that they learn from"""
    particles: int = Field(default=1, gt=0)
    """P, futures imagined of one sequence, each by one member; a multiple of members"""
    predict_change: bool = False
    """predict s_{t+1} - s_t instead of s_{t+1}: most of a state stays as it is"""
    probabilistic: bool = False
    """predict a Gaussian, from which particles draw; else its mean alone"""
    input_bins: int | None = Field(default=None, ge=2)
    """read each number of observation and action as one of so many quantile bins, with an embedding; null: as it is"""

    @model_validator(mode="after")
    def _fits(self) -> MLPDynamicsConfig:
        if self.particles % self.members:
            raise ValueError(
                f"particles={self.particles} cannot be dealt out evenly to members={self.members}; want a multiple"
            )
        return self


@dataclass(frozen=True)
class Transition:
    """What the members say of one step each; leading dimensions [members, B]."""

    targets: Tensor
    """means of what is predicted, scaled, [.., M]"""
    log_variance: Tensor | None
    """of them, [.., M]; None: not predicted"""
    rewards: Tensor
    """means, [..]"""
    continuation_logits: Tensor | None
    """log-odds that the episode goes on, [..]; None for tasks that cannot terminate"""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one imagined step, means over particles, [B] each."""

    rewards: Tensor
    continuation_logits: Tensor | None


@dataclass
class Rollout:
    """Where imagined sequences stand."""

    particles: Tensor
    """observations [P, B, M], each member's particles side by side"""
    steps: int
    """taken from the root"""


class MLPDynamics(BoxActions, nn.Module):
    """All members at once; to a planner a DynamicsModel (common/contracts.py)."""

    window: int | None = None
    normal: Tensor

    def __init__(self, config: MLPDynamicsConfig, obs_dim: int, action_dim: int, can_terminate: bool) -> None:
        super().__init__()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        members, width = config.members, config.width
        numbers = obs_dim + action_dim
        self.tokens = self.embedding = None
        if config.input_bins is not None:
            self.tokens = ScalarTokens("quantile", numbers, config.input_bins)
            self.embedding = nn.Embedding(members * numbers * config.input_bins, EMBEDDED)
        sizes = [numbers if self.embedding is None else numbers * EMBEDDED, *[width] * config.layers]
        self.hidden = nn.ModuleList(MemberLinear(members, n, width) for n in sizes[:-1])
        self.state_head = MemberLinear(members, width, obs_dim * (2 if config.probabilistic else 1))
        self.reward_head = nn.Sequential(MemberLinear(members, width, 1))
        self.reward_unit = Unit()
        self.continuation_head = MemberLinear(members, width, 1) if can_terminate else None
        self.scale, self.target_scale = ObservationScale(obs_dim), ObservationScale(obs_dim)
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(STEPS, config.particles, 1, obs_dim, generator=generator)
        self.register_buffer("normal", normal, persistent=False)

    def forward(self, observations: Tensor, actions: Tensor) -> Transition:
        """Predict each member's own steps: observations [members, B, M], actions [members, B, N]."""
        check_shape(observations, "members B M", members=self.config.members, M=self.obs_dim)
        with outside_autocast(observations.device):  # bfloat16 would round a position to 4 mm
            x = self._inputs(observations, actions)
            for layer in self.hidden:
                x = F.silu(layer(x))
            targets, log_variance = self.state_head(x), None
            if self.config.probabilistic:
                low, high = LOG_VARIANCE
                targets, raw = targets.chunk(2, dim=-1)
                log_variance = low + F.softplus(high - F.softplus(high - raw) - low)
            rewards = self.reward_head(x).squeeze(-1) * self.reward_unit.size
            goes_on = None if self.continuation_head is None else self.continuation_head(x).squeeze(-1)
            return Transition(targets, log_variance, rewards, goes_on)

    def _inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Scale what is observed, or embed all by bins, each member by a table of its own: [members, B, inputs]."""
        if self.tokens is None or self.embedding is None:
            return torch.cat([self.scale(observations), actions], dim=-1)
        bins = self.tokens.encode(torch.cat([observations, actions], dim=-1))  # [members, B, M + N]
        members, _, numbers = bins.shape
        column = torch.arange(members * numbers, device=bins.device).view(members, 1, numbers)
        return self.embedding(bins + column * self.tokens.bins).flatten(-2)

    def target(self, observations: Tensor, next_observations: Tensor) -> Tensor:
        """Return what is predicted of a step, in the task's units: [.., M]."""
        return next_observations - observations if self.config.predict_change else next_observations

    def start(self, context: TensorTree) -> Rollout:
        """Begin all particles at the newest observations [E, M]."""
        check_shape(observations := context["observations"], "E M", M=self.obs_dim)
        return Rollout(observations.expand(self.config.particles, -1, -1), steps=0)

    def select(self, rollout: Rollout, index: Tensor, room: int, out: Rollout | None = None) -> Rollout:
        """Copy sequences by number, index int64 [B]: each with its particles."""
        return Rollout(rollout.particles[:, index], rollout.steps)

    def step(self, rollout: Rollout, actions: Tensor) -> Prediction:
        """Take actions [B, N] in [-1, 1]; each particle moves on as its member says."""
        now, members = rollout.particles, self.config.members
        check_shape(actions, "B N", B=now.shape[1], N=self.action_dim)
        taken = actions.expand(now.shape[0], -1, -1)  # [P, B, N]
        of_member = (members, -1)
        said = self(now.reshape(*of_member, self.obs_dim), taken.reshape(*of_member, self.action_dim))
        targets = said.targets.view_as(now)
        if said.log_variance is not None:
            std = (0.5 * said.log_variance).exp().view_as(now)
            targets = targets + std * self.normal[rollout.steps % STEPS]
        after = self.target_scale.undo(targets)
        rollout.particles = now + after if self.config.predict_change else after
        rollout.steps += 1
        goes_on = said.continuation_logits
        return Prediction(
            said.rewards.view(now.shape[:2]).mean(dim=0),
            None if goes_on is None else goes_on.view(now.shape[:2]).mean(dim=0),
        )

    def state(self, rollout: Rollout) -> TensorTree:
        """Return the particles' mean observations, [B, M]."""
        return {"observations": rollout.particles.mean(dim=0)}


class MemberLinear(nn.Module):
    """A linear layer of each member, begun as nn.Linear: [members, B, inputs] -> [members, B, outputs]."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each member's layer to its own rows."""
        return torch.baddbmm(self.bias, x, self.weight)
