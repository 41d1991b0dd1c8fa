"""Imagine in a world model's latent space, from observations of a batch on: the experience that a policy learns from.

    Seen (a batch, as the world model saw it) --starts--> H steps of policy and dynamics --> Imagined

A sequence whose episode has ended (the product of its predicted discounts falls below `cut_below`) goes on as another
one: at a latent drawn from the batch, with nothing remembered, and its weight starts anew at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.models.two_hot import draw
from qttdm.common.models.world_model import Dynamics, Outcome, Seen
from qttdm.common.trees import TensorTree


class ImaginationConfig(Config):
    """How much is imagined; defaults are the published ones."""

    starts: int = Field(default=400, gt=0)
    """n, sequences imagined in each update, each from an observation of its batch"""
    horizon: int = Field(default=15, gt=0)
    """H, steps of each"""
    cut_below: float = Field(default=0.1, ge=0, lt=1)
    """an imagined sequence ends, and another begins, where its discounts' product falls below; 0: never"""


@dataclass(frozen=True)
class Imagined:
    """n sequences of H steps, the step first."""

    latents: Tensor
    """[H, n, Z], in which was acted"""
    actions: Tensor
    """[H, n] or [H, n, N], as drawn"""
    rewards: Tensor
    """[H, n]"""
    discounts: Tensor
    """[H, n], of what follows"""
    next_latents: Tensor
    """[H, n, Z]; of a sequence that is cut the last"""
    cut: Tensor
    """bool [H, n]: the sequence ended with this step; the next belongs to another"""
    weights: Tensor
    """[H, n], product of the discounts since the sequence began"""


def draw_noise(
    config: ImaginationConfig, seen: Seen, variables: int, action_shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """Draw all random numbers of one imagination from torch's global generator: uniforms, starts and restarts."""
    n, horizon, device = config.starts, config.horizon, seen.latents.device
    possible = seen.exists.flatten().float()
    where = torch.multinomial(possible, n * (horizon + 1), replacement=True).view(horizon + 1, n)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(horizon, n, *shape, device=device)

    return {
        "starts": where[0],
        "restarts": where[1:],
        "latents": uniform(variables),
        "rewards": uniform(),
        "actions": uniform(*action_shape),
    }


@torch.no_grad()
def imagine(
    dynamics: Dynamics,
    seen: Seen,
    act: Callable[[Tensor, Tensor], Tensor],
    noise: TensorTree,
    cut_below: float,
    in_box: Callable[[Tensor], Tensor] = lambda actions: actions,
) -> Imagined:
    """Imagine by a policy `act(latents [n, Z], uniforms)`, whose actions the dynamics take as `in_box` cuts them."""
    horizon, length = len(noise["rewards"]), seen.latents.shape[1]
    windows, steps = noise["starts"] // length, noise["starts"] % length
    cache = dynamics.tails(seen, windows, steps, horizon)
    latents, known = seen.latents[windows, steps], steps > 0
    reward = seen.rewards[windows, (steps - 1).clamp_min(0)]
    weight = torch.ones_like(reward)
    rows = []
    for h in range(horizon):
        actions = act(latents, noise["actions"][h])
        outcome = dynamics.step(cache, reward, known, latents, in_box(actions))
        reward = rewards_of(dynamics, outcome, noise["rewards"][h])
        following = one_hot(outcome.latents, noise["latents"][h])
        discounts = dynamics.discounts(outcome)
        cut = weight * discounts < cut_below
        rows.append((latents, actions, reward, discounts, following, cut, weight))
        other = seen.latents.flatten(0, 1)[noise["restarts"][h]]
        latents = torch.where(cut.unsqueeze(-1), other, following)
        weight = torch.where(cut, 1.0, weight * discounts)
        known = ~cut
        assert cache.missing is not None
        cache.missing = torch.where(cut, cache.length, cache.missing)
    return Imagined(*(torch.stack(column) for column in zip(*rows, strict=True)))


def rewards_of(dynamics: Dynamics, outcome: Outcome, chance: Tensor) -> Tensor:
    """Return the rewards [..] of a step: drawn, or their means as published."""
    bins = dynamics.reward_bins
    return (
        bins.mean(outcome.rewards) if dynamics.config.reward_feedback == "mean" else bins.draw(outcome.rewards, chance)
    )


def one_hot(logits: Tensor, chance: Tensor) -> Tensor:
    """Draw a latent, given uniforms [.., G]: [.., G, C] -> [.., Z]."""
    return nn.functional.one_hot(draw(logits, chance), logits.shape[-1]).to(torch.float32).flatten(-2)
