"""One gradient step of actor and critic on imagined experience: no real transition is ever in it.

    critic   cross-entropy to the lambda-returns
    actor    - log pi(a | z) * advantage, and a hinge on its entropy: none while it keeps a share of the largest

Both count each step by the product of the discounts before it. Values in the returns are those of an average of earlier
critics (published: of the critic itself); advantages are divided by the range of returns if that is above 1
(published: by nothing).
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor

from qttdm.common.config import Config
from qttdm.common.metrics.lines import declare
from qttdm.common.models.actor_critic import ActorCritic
from qttdm.common.models.transformer import outside_autocast
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.imagination import ImaginationConfig, Imagined, draw_noise, imagine
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.targets import advantages
from qttdm.learner.parts.trained import TrainedPart, follow
from qttdm.learner.parts.world_model import WorldModelLearner

declare(
    ("loss_actor", "1", "actor-critic: -log p of imagined actions by their advantages, with the entropy's hinge"),
    ("loss_imagined_value", "nats", "actor-critic: cross-entropy of imagined returns"),
    ("policy_entropy", "fraction", "actor-critic: entropy of the policy in imagined states, from least 0 to most 1"),
    ("imagined_return", "scaled return", "actor-critic: mean lambda-return of imagined states"),
    ("imagined_reward", "scaled reward", "actor-critic: mean imagined reward"),
    ("imagined_cuts", "fraction", "actor-critic: imagined steps that end an episode"),
    ("advantage_unit", "scaled return", "actor-critic: what advantages are divided by"),
    ("grad_norm_actor", "1", "actor-critic: gradient norm of the actor before clipping"),
    ("grad_norm_critic", "1", "actor-critic: gradient norm of the critic before clipping"),
    ("lr_actor_critic", "1", "actor-critic: learning rate of the actor"),
)


class ActorOptimizerConfig(OptimizerConfig):
    """Adam as published."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's, at the start"""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """a gradient with a larger norm is scaled down to it"""


class CriticOptimizerConfig(ActorOptimizerConfig):
    """Adam as published: slower than the actor's."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Adam's, at the start"""


class ActorCriticLearnerConfig(Config):
    """How actor and critic learn."""

    actor: ActorOptimizerConfig = ActorOptimizerConfig()
    """optimiser of the actor"""
    critic: CriticOptimizerConfig = CriticOptimizerConfig()
    """optimiser of the critic"""
    imagination: ImaginationConfig = ImaginationConfig()
    """how much is imagined"""
    trace: float = Field(default=0.95, ge=0, le=1)
    """lambda, of the returns"""
    entropy_weight: float = Field(default=0.01, ge=0)
    """of the entropy that the policy lacks"""
    entropy_threshold: float = Field(default=0.1, ge=0, le=1)
    """share of the largest entropy that the policy is to keep in each state; 1: a plain bonus on entropy"""
    scale_advantages: bool = True
    """divide advantages by the range from the 5th to the 95th percentile of returns, if it is above 1"""
    range_decay: float = Field(default=0.99, ge=0, lt=1)
    """of the running average of that range"""
    target_rate: float = Field(default=0.02, gt=0, le=1)
    """how far the critic in the returns moves to the critic with each update; 1: they are the same (published)"""


class ActorCriticLearner(TrainedPart):
    """Learns from what the world model imagines, starting from the batch that it has just learned from."""

    name = "actor_critic"

    def __init__(self, config: ActorCriticLearnerConfig, network: ActorCritic, world_model: WorldModelLearner) -> None:
        self.config, self.network, self.world_model = config, network, world_model
        self.target = copy.deepcopy(network.critic).eval().requires_grad_(False)
        self.range = torch.zeros(())
        self.optimizer = AdamStep(config.actor, network.actor)
        self.critic_optimizer = AdamStep(config.critic, network.critic)
        self.saved = {
            "network": network,
            "target": self.target,
            "adam": self.optimizer,
            "adam_critic": self.critic_optimizer,
        }

    def imagine(self) -> Imagined:
        """Imagine from the world model's newest batch."""
        c, net, world = self.config.imagination, self.network, self.world_model
        assert world.seen is not None, "the world model comes first in an update"
        shape = (net.action_dim,) if net.choices is None else ()
        noise = draw_noise(c, world.seen, world.network.config.variables, shape)
        world.dynamics.eval()  # no dropout in what is imagined
        imagined = imagine(world.dynamics, world.seen, net.draw, noise, c.cut_below, net.in_box)
        world.dynamics.train()
        return imagined

    def loss(self, imagined: Imagined) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the actor's loss, the critic's, and the numbers to report."""
        c, net, weights = self.config, self.network, imagined.weights
        weights = weights / weights.sum()
        bins = net.value_bins
        with torch.no_grad():
            values, following = (bins.mean(self.target(z)) for z in (imagined.latents, imagined.next_latents))
            gains = advantages(imagined.rewards, imagined.discounts, values, following, imagined.cut, c.trace)  # [H, n]
            returns = gains + values
            bins.follow(returns)
            unit = self._unit(returns) if c.scale_advantages else torch.ones_like(self.range)
        log_p, entropy = net.judge(imagined.latents, imagined.actions)
        lacking = (c.entropy_threshold - entropy).clamp_min(0)
        actor = (weights * (c.entropy_weight * lacking - gains / unit * log_p)).sum()
        critic = (weights * bins.loss(net.critic(imagined.latents), returns)).sum()
        metrics = {
            "loss_actor": actor,
            "loss_imagined_value": critic,
            "policy_entropy": (weights * entropy).sum(),
            "imagined_return": (weights * returns).sum(),
            "imagined_reward": (weights * imagined.rewards).sum(),
            "imagined_cuts": imagined.cut.float().mean(),
            "advantage_unit": unit,
        }
        return actor, critic, {name: value.detach() for name, value in metrics.items()}

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step of both; the batch is the one that the world model has just seen."""
        self.optimizer.clear()
        self.critic_optimizer.clear()
        imagined = self.imagine()  # under autocast where that is on, as the memory that it starts from was made
        with outside_autocast(batch["rewards"].device):
            actor, critic, metrics = self.loss(imagined)
        (actor + critic).backward()
        norms = {
            "grad_norm_critic": self.critic_optimizer.step(progress),
            "grad_norm_actor": self.optimizer.step(progress),
        }
        follow(self.target, self.network.critic, self.config.target_rate)
        return metrics | norms

    def state(self) -> dict[str, Tensor]:
        """Return what is saved, and the range of returns."""
        return super().state() | {"range": self.range}

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        super().load_state(state)
        self.range = state["range"].clone()

    def _unit(self, returns: Tensor) -> Tensor:
        """Follow the range of returns, and return it, at least 1."""
        low, high = (torch.quantile(returns.flatten(), share) for share in (0.05, 0.95))
        before = self.range.to(returns.device)
        decay = torch.where(before > 0, self.config.range_decay, 0.0)
        self.range = torch.lerp(high - low, before, decay)
        return self.range.clamp_min(1.0)
