"""Implicit Q-learning (Kostrikov et al., 2021): learn from logged actions without ever asking for the value of others.

V(s) is an upper expectile of Q(s, a) over the logged actions, Q learns towards r + gamma V(s'), and the policy imitates
the logged actions, the better ones more. Rewards are multiplied so that discounted returns spread over 1 / (1 - gamma),
as those of one reward a step would. Published instead: 1000 / (best - worst return) where episodes have 1,000 steps,
which is the same; and reward - 1 for a reward of 1 at a goal, the same but for a constant.

Choice: one step of all four networks by the values before it. Why: they need one pass. The published code lets V go
first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.metrics.lines import declare
from qttdm.common.models.iql import IQL
from qttdm.common.models.scale import BATCHES
from qttdm.common.models.transformer import outside_autocast
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.losses import expectile_loss, masked_mean
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.trained import TrainedPart, follow

declare(
    ("loss_value", "1", "IQL: expectile loss of V against the lower target Q, in units of its own reward scale"),
    ("loss_critic", "1", "IQL: squared error of both Qs, summed, in units of its own reward scale"),
    ("loss_policy", "nats", "IQL: -log p of the logged actions, weighted by their advantages"),
    ("grad_norm_iql", "1", "IQL: gradient norm of V and both Qs before clipping"),
    ("grad_norm_policy", "1", "IQL: gradient norm of the policy before clipping"),
    ("lr_iql", "1", "IQL: learning rate of the policy"),
    ("q_value", "scaled return", "IQL: mean V of a batch's states"),
    ("q_logged", "scaled return", "IQL: mean lower target Q of a batch's actions"),
    ("advantage_clipped", "fraction", "IQL: logged actions whose weight is cut to the largest"),
    ("policy_std", "1", "IQL: standard deviation of the policy, mean over action dimensions"),
)


class IQLOptimizerConfig(OptimizerConfig):
    """Adam; the published code clips no gradient and decays no weight."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Adam's, at the start"""
    weight_decay: float = Field(default=0.0, ge=0)
    """Adam's: this times the parameter is added to its gradient"""
    max_grad_norm: float = Field(default=1e6, gt=0)
    """a gradient with a larger norm is scaled down to it"""


class IQLActorConfig(IQLOptimizerConfig):
    """The policy's own."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """linear, cosine: decays to 0 at the end of the training"""


class IQLLearnerConfig(Config):
    """Defaults are published for locomotion; for AntMaze expectile 0.9 and temperature 10."""

    values: IQLOptimizerConfig = IQLOptimizerConfig()
    """optimiser of V and both Qs"""
    policy: IQLActorConfig = IQLActorConfig()
    """optimiser of the policy"""
    expectile: float = Field(default=0.7, ge=0.5, lt=1)
    """tau: 0.5 values the logged behaviour, towards 1 the best logged action in each state"""
    temperature: float = Field(default=3.0, ge=0)
    """beta: 0 imitates all logged actions, more the better ones"""
    largest_weight: float = Field(default=100.0, gt=0)
    """of a logged action in the policy's loss"""
    ema_coefficient: float = Field(default=0.005, gt=0, le=1)
    """how far the target Qs move towards the Qs with each update"""


class IQLLearner(TrainedPart):
    """All steps of a window count, so its length may be anything."""

    name = "iql"

    def __init__(self, config: IQLLearnerConfig, network: IQL, discount: float, compile: bool = False) -> None:
        self.config, self.network, self.discount = config, network, discount
        self.target = copy.deepcopy(network.critics).eval().requires_grad_(False)
        self.value_optimizer = AdamStep(config.values, nn.ModuleList([network.values, network.critics]))
        self.optimizer = AdamStep(config.policy, network.actor)
        self.saved = {
            "network": network,
            "target": self.target,
            "adam": self.value_optimizer,
            "adam_policy": self.optimizer,
        }
        self.loss = torch.compile(self._loss) if compile else self._loss

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit the scales of observations and rewards."""
        first = list(islice(batches, BATCHES))
        self.network.scale.fit(iter(first))
        returns = torch.cat([torch.from_numpy(b["returns_to_go"][b["mask"]]) for b in first])
        spread = returns.max() - returns.min()
        if spread > 0:
            self.network.reward_scale.data.copy_(1.0 / (1.0 - self.discount) / spread)

    def _loss(self, batch: Tensors) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the loss of V and both Qs, the policy's, and the other metrics."""
        c, net, mask, actions = self.config, self.network, batch["mask"], batch["actions"]
        states = net.scale(batch["observations"])  # [B, L+1, M]
        values = net.values(states).squeeze(-1)  # [B, L+1]
        now, v = states[:, :-1], values[:, :-1]
        with torch.no_grad():
            q = self.target(now, actions).amin(dim=0)  # [B, L]
            goes_on = (~batch["terminated"]).to(q.dtype)
            targets = batch["rewards"] * net.reward_scale + self.discount * goes_on * values[:, 1:]
            weight = (c.temperature * (q - v)).exp()
        value = masked_mean(expectile_loss(q - v, c.expectile), mask)
        critic = masked_mean((net.critics(now, actions) - targets).square().sum(dim=0), mask)
        policy = -masked_mean(weight.clamp_max(c.largest_weight) * net.actor.log_prob(now, actions), mask)
        metrics = {
            "loss_value": value,
            "loss_critic": critic,
            "loss_policy": policy,
            "q_value": masked_mean(v, mask) / net.reward_scale,
            "q_logged": masked_mean(q, mask) / net.reward_scale,
            "advantage_clipped": masked_mean((weight > c.largest_weight).to(q.dtype), mask),
            "policy_std": net.actor.std.mean(),
        }
        return value + critic, policy, {name: metric.detach() for name, metric in metrics.items()}

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step on a batch of windows; metrics stay on the device."""
        self.value_optimizer.clear()
        self.optimizer.clear()
        with outside_autocast(batch["rewards"].device):
            values, policy, metrics = self.loss(batch)
        (values + policy).backward()
        norms = {
            "grad_norm_iql": self.value_optimizer.step(progress),
            "grad_norm_policy": self.optimizer.step(progress),
        }
        follow(self.target, self.network.critics, self.config.ema_coefficient)
        return metrics | norms
