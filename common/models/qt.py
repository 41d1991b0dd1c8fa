"""The Q-Transformer (paper, Eq. 1, 6, 7): the value of an action, chosen one dimension at a time.

It reads N tokens `s_t a_t^1 .. a_t^{N-1}` (the last dimension is never an input). The output at position i is K
Q-values for dimension i, given the state and the earlier dimensions. Two heads: their mean acts and values, their
minimum makes targets. In the paper they share one trunk; with `separate_trunks` each has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.models.scale import ObservationScale, Unit
from qttdm.common.models.tokenizer import ActionEmbedding, ActionTokenizer
from qttdm.common.models.transformer import (
    KeyValueCache,
    StateEmbedding,
    Transformer,
    TransformerConfig,
    init_weights,
    outside_autocast,
)
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree


class QTConfig(TransformerConfig):
    """Size of the QT; defaults are the paper's (Table III)."""

    embed_dim: int = Field(default=128, gt=0)
    """D, features per token"""
    num_heads: int = Field(default=8, gt=0)
    """attention heads; embed_dim is divisible by it"""
    num_layers: int = Field(default=2, gt=0)
    """transformer blocks"""
    separate_trunks: bool = False
    """each head has embeddings and a trunk of its own, so that the two err apart; the paper's share one"""
    terminal_value: Literal["greedy", "first_dimension"] = "greedy"
    """V(s): walk all N dimensions, or the maximum over the first one (one pass; equal in the limit by Eq. 2)"""


class Tower(nn.Module):
    """f (Eq. 6) and its heads g (Eq. 7)."""

    def __init__(self, config: QTConfig, obs_dim: int, action_dim: int, heads: int) -> None:
        super().__init__()
        dim = config.embed_dim
        tokenizer = ActionTokenizer(config.bins, config.interpolate)
        self.state_embedding = StateEmbedding(obs_dim, dim, config.state_hidden)
        self.action_embedding = ActionEmbedding(action_dim, tokenizer, dim)
        self.position_embedding = nn.Embedding(action_dim, dim)
        self.trunk = Transformer(config)
        self.apply(init_weights)
        self.heads = nn.ModuleList(value_head(dim, config.bins) for _ in range(heads))

    def forward(self, states: Tensor, actions: Tensor) -> list[Tensor]:
        """Read whole sequences: states [B, M], actions [B, n] -> for each head [B, n+1, K]."""
        tokens = self.state_embedding(states).unsqueeze(1)  # [B, 1, D]
        if actions.shape[1] > 0:
            tokens = torch.cat([tokens, self.action_embedding(actions)], dim=1)  # [B, n+1, D]
        return self._read(self.trunk(tokens + self.position_embedding.weight[: tokens.shape[1]]))

    def first(self, states: Tensor, cache: KeyValueCache | None = None) -> list[Tensor]:
        """Read the state's token, [B, M] -> for each head [B, K], the first dimension's."""
        return self._next(self.state_embedding(states), 0, cache)

    def next(self, bins: Tensor, dimension: int, cache: KeyValueCache | None) -> list[Tensor]:
        """Read the bins [B] of the dimension before -> for each head [B, K], those of `dimension` (from 0)."""
        token = self.action_embedding.embed_bins(bins.unsqueeze(1), first=dimension - 1).squeeze(1)
        return self._next(token, dimension, cache)

    def _next(self, token: Tensor, dimension: int, cache: KeyValueCache | None) -> list[Tensor]:
        token = token + self.position_embedding.weight[dimension]  # [B, D]
        return self._read(self.trunk(token.unsqueeze(1), cache=cache).squeeze(1))

    def _read(self, hidden: Tensor) -> list[Tensor]:
        """Apply the heads, [.., D] -> each [.., K].

        Outside of autocast: in bfloat16 values around 50 are multiples of 0.25, so that many bins tie for the best, and
        the first of them, the most negative action, wins.
        """
        with outside_autocast(hidden.device):
            hidden = hidden.to(self.position_embedding.weight.dtype)
            return [head(hidden) for head in self.heads]


class QT(nn.Module):
    """Two heads, on one trunk or on two."""

    def __init__(self, config: QTConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        self.tokenizer = ActionTokenizer(config.bins, config.interpolate)
        heads = [1, 1] if config.separate_trunks else [2]
        self.towers = nn.ModuleList(Tower(config, obs_dim, action_dim, count) for count in heads)
        self.scale = ObservationScale(obs_dim) if config.normalise else None
        self.value_unit = Unit() if config.normalise else None

    @property
    def _towers(self) -> Iterator[Tower]:
        return cast(Iterator[Tower], iter(self.towers))

    @property
    def heads(self) -> list[nn.Sequential]:
        """Both heads."""
        return [cast(nn.Sequential, head) for tower in self._towers for head in tower.heads]

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return Q-values of every bin, given the action dimensions before it.

        observations [B, M]; actions [B, n] in [-1, 1], the dimensions 1..n taken, n <= N-1
        -> [2, B, n+1, K], dimensions 1..n+1, one layer per head.
        """
        check_shape(observations, "B M", M=self.obs_dim)
        states = self._scaled(observations)
        return torch.stack([q for tower in self._towers for q in self._in_units(tower(states, actions))])

    def choose(
        self,
        observations: Tensor,
        chance: Tensor | None = None,
        which: Tensor | None = None,
        probability: float | Tensor = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Walk the dimensions greedily: observations [B, M] -> bins int64 [B, N], value [B].

        With `chance` and `which` (uniform in [0, 1), [B, N]) each bin is replaced by a uniform one with the given
        probability before the next dimension is chosen; and always where all bins are worth the same, as they are
        until there has been a reward. The value is the maximum over the last dimension's bins.
        """
        check_shape(observations, "B M", M=self.obs_dim)
        states = self._scaled(observations)
        room, walk = self.action_dim, self.action_dim > 1
        caches = [tower.trunk.new_cache(len(states), room) if walk else None for tower in self._towers]
        chosen: list[Tensor] = []
        for i in range(self.action_dim):
            q = [
                head
                for tower, cache in zip(self._towers, caches, strict=True)
                for head in (tower.first(states, cache) if i == 0 else tower.next(chosen[-1], i, cache))
            ]
            values = self._mean(q)  # [B, K]
            value, best = values.max(dim=-1)  # [B], [B]
            if chance is not None and which is not None:
                equal = values.amin(dim=-1) == value  # [B]
                best = self.tokenizer.replace(best, chance[:, i], which[:, i], torch.where(equal, 1.0, probability))
            chosen.append(best)
        return torch.stack(chosen, dim=1), value

    def act(self, observations: Tensor) -> Tensor:
        """Return the greedy action, [B, M] -> [B, N], without the cache: a graph cannot hold one."""
        actions = observations[:, :0]  # [B, 0]
        for _ in range(self.action_dim):
            first, second = self(observations, actions)[:, :, -1].unbind()  # [B, K] each
            best = torch.lerp(first, second, 0.5).argmax(dim=-1, keepdim=True)  # [B, 1]
            actions = torch.cat([actions, self.tokenizer.decode(best)], dim=1)
        return actions

    def propose(
        self, state: TensorTree, chance: Tensor, which: Tensor, probability: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Propose greedy actions [B, N] with random bins mixed in, and their values [B]: contracts.ValueFunction."""
        bins, values = self.choose(state["observations"], chance, which, probability)
        return self.tokenizer.decode(bins), values

    def value(self, state: TensorTree) -> Tensor:
        """Return V(s) [B] of `observations` [B, M], without random bins."""
        observations = state["observations"]
        if self.config.terminal_value == "greedy":
            return self.choose(observations)[1]
        return self.first_dimension_value(observations)

    def first_dimension_value(self, observations: Tensor) -> Tensor:
        """Return maximum over the first dimension's bins, [B, M] -> [B], in one pass."""
        states = self._scaled(observations)
        return self._mean([q for tower in self._towers for q in tower.first(states)]).amax(dim=-1)

    def _scaled(self, observations: Tensor) -> Tensor:
        return observations if self.scale is None else self.scale(observations)

    def _mean(self, q: list[Tensor]) -> Tensor:
        """Return the mean of the two heads, each [.., K], in the task's units."""
        first, second = self._in_units(q)
        return torch.lerp(first, second, 0.5)

    def _in_units(self, q: list[Tensor]) -> list[Tensor]:
        return q if self.value_unit is None else [self.value_unit.size * values for values in q]


def value_head(dim: int, bins: int) -> nn.Sequential:
    """Make MLP D -> D -> K with ReLU; the last layer starts at zero, so does every value."""
    last = nn.Linear(dim, bins)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last)
