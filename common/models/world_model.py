"""A transformer world model's dynamics: what follows in latent space, told the rewards it emits (Robine et al., 2023).

    tokens of a step   r_{t-1}  z_t  a_t  -->  h_t, the trunk's output at a_t
    from h_t           z_{t+1} (logits [G, C]),  r_t (two-hot over symlog bins),  gamma_t (Bernoulli logit)

Positions are rotary, and a token reaches back over the tokens of L steps: imagination goes on as long as it likes.
Choice: the published model feeds a mean back, which after a coin flip is a reward that never occurs. Here rewards are
drawn, and fed back as drawn; `reward_feedback` has the published way, and none at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.models.latent import LatentConfig
from qttdm.common.models.transformer import (
    KeyValueCache,
    RotaryTrunkConfig,
    Transformer,
    init_weights,
    outside_autocast,
)
from qttdm.common.models.two_hot import TwoHot, symlog


class WorldModelConfig(RotaryTrunkConfig):
    """Sizes of the world model; defaults are the published ones."""

    embed_dim: int = Field(default=256, gt=0)
    """D, features per token"""
    num_heads: int = Field(default=4, gt=0)
    """attention heads; embed_dim is divisible by it"""
    num_layers: int = Field(default=10, gt=0)
    """transformer blocks"""
    window: int = Field(default=16, gt=0)
    """L, steps of a training window, and steps that a token reaches back"""
    latent: LatentConfig = LatentConfig()
    """the observation model"""
    head_layers: int = Field(default=4, gt=0)
    """hidden layers of each head"""
    latent_head: int = Field(default=512, gt=0)
    """width of the hidden layers of the next latent's head"""
    number_head: int = Field(default=256, gt=0)
    """width of the hidden layers of the reward's and the discount's head"""
    reward_bins: int = Field(default=121, ge=3)
    """V, two-hot bins of a reward; odd"""
    reward_feedback: Literal["drawn", "mean", "none"] = "drawn"
    """what the model is told of the rewards that it imagines: those drawn, their means (published), or no rewards"""


@dataclass(frozen=True)
class Outcome:
    """What follows from steps, leading dimensions [..]."""

    latents: Tensor
    """logits of the next latent, [.., G, C]"""
    rewards: Tensor
    """logits of the reward's bins, [.., V]"""
    discounts: Tensor
    """log-odds of the discount, [..]"""


@dataclass(frozen=True)
class Seen:
    """A batch of windows as the world model saw it: where imagination may start."""

    latents: Tensor
    """[B, L+1, Z], without gradients"""
    rewards: Tensor
    """[B, L]"""
    exists: Tensor
    """bool [B, L+1]: something follows this observation, or may"""
    cache: KeyValueCache
    """of the windows' tokens"""


class Dynamics(nn.Module):
    """The transformer, its tokens and its three heads."""

    def __init__(
        self, config: WorldModelConfig, action_dim: int, choices: int | None, discount: float, terminates: bool
    ) -> None:
        """choices: of a discrete action; None: actions are action_dim numbers. discount: of a step that goes on."""
        super().__init__()
        self.config, self.discount, self.terminates = config, discount, terminates
        dim, latent = config.embed_dim, config.latent
        self.told = config.reward_feedback != "none"
        self.tokens = 3 if self.told else 2  # of a step
        self.latent_embedding = nn.Sequential(nn.Linear(latent.size, dim), nn.SiLU())
        self.action_embedding: nn.Module = (
            nn.Embedding(choices, dim) if choices is not None else nn.Sequential(nn.Linear(action_dim, dim), nn.SiLU())
        )
        self.reward_embedding = nn.Sequential(nn.Linear(1, dim), nn.SiLU())
        self.trunk = Transformer(config, rotary=True, reach=self.tokens * config.window)
        self.trunk.apply(init_weights)
        self.first = nn.Parameter(torch.randn(dim))  # in place of a reward that is not known
        self.reward_bins = TwoHot(config.reward_bins)
        self.latent_head = head(dim, config.latent_head, config.head_layers, latent.size)
        self.reward_head = head(dim, config.number_head, config.head_layers, config.reward_bins)
        at_first = math.log(discount / (1 - discount))
        self.discount_head = head(dim, config.number_head, config.head_layers, 1, at_first)

    def forward(self, latents: Tensor, actions: Tensor, rewards: Tensor) -> tuple[Outcome, KeyValueCache]:
        """Read windows from their first step on.

        latents [B, L, Z], actions [B, L] or [B, L, N], rewards [B, L] -> outcomes [B, L, ..], and the memory of them.
        """
        before = torch.cat([torch.zeros_like(rewards[:, :1]), rewards[:, :-1]], dim=1)
        known = torch.ones_like(before, dtype=torch.bool)
        known[:, 0] = False
        tokens = self._embed(before, known, latents, actions).flatten(1, 2)  # [B, 3 L, D]
        cache = self.trunk.new_cache(len(tokens), tokens.shape[1])
        return self.outcome(self.trunk(tokens, stride=self.tokens, cache=cache)), cache

    def step(self, cache: KeyValueCache, before: Tensor, known: Tensor, latents: Tensor, actions: Tensor) -> Outcome:
        """Take a step: the reward before it [B], where it is known, latents [B, Z], actions [B] or [B, N]."""
        tokens = self._embed(before, known, latents, actions)  # [B, 3, D]
        return self.outcome(self.trunk(tokens, stride=self.tokens, cache=cache).squeeze(1))

    def outcome(self, hidden: Tensor) -> Outcome:
        """Apply the heads, [.., D]; outside of autocast."""
        with outside_autocast(hidden.device):
            hidden = hidden.to(self.first.dtype)
            latent = self.config.latent
            latents = self.latent_head(hidden).unflatten(-1, (latent.variables, latent.classes))
            return Outcome(latents, self.reward_head(hidden), self.discount_head(hidden).squeeze(-1))

    def discounts(self, outcome: Outcome) -> Tensor:
        """Return gamma of what follows, [..]: 0 where the task ends."""
        return outcome.discounts.sigmoid() if self.terminates else torch.full_like(outcome.discounts, self.discount)

    def tails(self, seen: Seen, windows: Tensor, steps: Tensor, room: int) -> KeyValueCache:
        """Copy the memory of what stands before observations: window and step int64 [n], room for so many steps."""
        length = self.tokens * seen.rewards.shape[1]
        return seen.cache.tails(windows, self.tokens * steps, length, self.tokens * room)

    def _embed(self, before: Tensor, known: Tensor, latents: Tensor, actions: Tensor) -> Tensor:
        """Embed steps [..] as their tokens [.., 3, D]."""
        tokens = [self.latent_embedding(latents), self.action_embedding(actions)]
        if self.told:
            reward = self.reward_embedding(symlog(before).unsqueeze(-1))
            tokens.insert(0, torch.where(known.unsqueeze(-1), reward, self.first))
        return torch.stack(tokens, dim=-2)


def head(inputs: int, hidden: int, layers: int, outputs: int, at_first: float = 0.0) -> nn.Sequential:
    """Make an MLP that begins with its activation, as published; at first its outputs are `at_first`."""
    sizes = [inputs, *[hidden] * layers]
    parts = [part for i in range(layers) for part in (nn.SiLU(), nn.Linear(sizes[i], sizes[i + 1]))]
    last = nn.Linear(sizes[-1], outputs)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, at_first)
    return nn.Sequential(*parts, nn.SiLU(), last)
