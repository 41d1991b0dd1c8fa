"""An actor and a critic that read a latent and nothing else: what a world model's policy is made of.

The actor is categorical over choices, or for continuous actions a Normal whose mean is a tanh and whose standard
deviation lies between 0.1 and 1, drawn and cut to the box. All draws are made from uniforms that are given.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.models.latent import Encoder, mlp, modes
from qttdm.common.models.transformer import outside_autocast
from qttdm.common.models.two_hot import TwoHot, draw
from qttdm.common.trees import TensorTree

STD = (0.1, 1.0)
"""bounds of a continuous action's standard deviation"""
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class ActorCriticConfig(Config):
    """Sizes of both; defaults are the published ones."""

    hidden: int = Field(default=512, gt=0)
    """width of hidden layers"""
    layers: int = Field(default=4, gt=0)
    """hidden layers"""
    value_bins: int = Field(default=121, ge=3)
    """V, two-hot bins of a return; odd"""
    act: Literal["draw", "mode"] = "mode"
    """what is executed when evaluating: a draw as when collecting (published), or the likeliest action"""


class ActorCritic(nn.Module):
    """pi(a | z) and V(z)."""

    def __init__(self, config: ActorCriticConfig, latent_size: int, action_dim: int, choices: int | None) -> None:
        super().__init__()
        self.config, self.action_dim, self.choices = config, action_dim, choices
        self.actor = mlp(latent_size, config.hidden, config.layers, 2 * action_dim if choices is None else choices)
        self.critic = mlp(latent_size, config.hidden, config.layers, config.value_bins)
        for network in (self.actor, self.critic):
            for layer in network:
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight, 2.0**0.5)
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():  # at first all actions are about as likely, and nothing has a value
            for parameter in self.actor[-1].parameters():
                parameter.mul_(0.01)
            for parameter in self.critic[-1].parameters():
                parameter.zero_()
        self.value_bins = TwoHot(config.value_bins)

    def value(self, latents: Tensor) -> Tensor:
        """Return V(z), [.., Z] -> [..]."""
        return self.value_bins.mean(self.critic(latents))

    def draw(self, latents: Tensor, chance: Tensor) -> Tensor:
        """Draw actions, given uniforms in [0, 1) of an action's shape: int64 [..], or float32 [.., N], not yet cut."""
        if self.choices is not None:
            return draw(self.actor(latents), chance)
        mean, std = self._normal(latents)
        return mean + std * math.sqrt(2.0) * torch.erfinv((2.0 * chance - 1.0).clamp(-1 + 1e-6, 1 - 1e-6))

    def mode(self, latents: Tensor) -> Tensor:
        """Return the likeliest actions, int64 [..] or float32 [.., N]."""
        if self.choices is not None:
            return self.actor(latents).argmax(dim=-1)
        return self._normal(latents)[0]

    def judge(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p of actions as drawn, and the entropy from 0 to 1, least to most: [..] both."""
        if self.choices is not None:
            log_p = self.actor(latents).float().log_softmax(dim=-1)
            chosen = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
            return chosen, -(log_p.exp() * log_p).sum(dim=-1) / math.log(max(2, self.choices))
        mean, std = self._normal(latents)
        log_p = -0.5 * ((actions - mean) / std).square() - std.log() - HALF_LOG_TWO_PI
        low, high = (math.log(bound) for bound in STD)
        return log_p.sum(dim=-1), ((std.log() - low) / (high - low)).mean(dim=-1)

    def in_box(self, actions: Tensor) -> Tensor:
        """Return actions as they are executed."""
        return actions if self.choices is not None else actions.clamp(-1.0, 1.0)

    def _normal(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.actor(latents).float().chunk(2, dim=-1)
        return mean.tanh(), STD[0] + (STD[1] - STD[0]) * (spread + 2.0).sigmoid()


class LatentActor(nn.Module):
    """Encoder, actor and critic as contracts.ValueFunction: what acts without planning."""

    def __init__(self, encoder: Encoder, actor_critic: ActorCritic) -> None:
        super().__init__()
        self.encoder, self.actor_critic = encoder, actor_critic

    def act(self, observations: Tensor) -> Tensor:
        """Return the likeliest actions: [B, ..] -> int64 [B] or float32 [B, N]."""
        return self.actor_critic.mode(self.latents(observations))

    def latents(self, observations: Tensor) -> Tensor:
        """Encode observations [B, ..] by the likeliest classes: [B, Z]."""
        return modes(self.encoder(observations)).flatten(-2)

    def value(self, state: TensorTree) -> Tensor:
        """Return V(z) [B] of `observations` [B, ..]."""
        with outside_autocast(state["observations"].device):
            return self.actor_critic.value(self.latents(state["observations"]))

    def propose(
        self, state: TensorTree, chance: Tensor, which: Tensor, probability: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Propose the likeliest actions and values; where chance < probability, an action drawn by `which` instead."""
        ac = self.actor_critic
        with outside_autocast(state["observations"].device):
            latents = self.latents(state["observations"])
            drawn = ac.draw(latents, which)
            if ac.config.act == "mode":
                if isinstance(probability, Tensor):
                    probability = probability.view(-1, *[1] * (chance.ndim - 1))
                drawn = torch.where(chance < probability, drawn, ac.mode(latents))
            return ac.in_box(drawn), ac.value(latents)
