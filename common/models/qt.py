"""The Q-Transformer (paper, Eq. 1, 6, 7): the value of an action, chosen one dimension at a time.

It reads N tokens `s_t a_t^1 .. a_t^{N-1}` (the last dimension is never an input). The output at position i is K
Q-values for dimension i, given the state and the earlier dimensions. Two heads share one trunk: their mean acts and
values, their minimum makes targets.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.models.scale import Unit
from qttdm.common.models.tokenizer import ActionEmbedding, ActionTokenizer
from qttdm.common.models.transformer import (
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
    terminal_value: Literal["greedy", "first_dimension"] = "greedy"
    """V(s): walk all N dimensions, or the maximum over the first one (one pass; equal in the limit by Eq. 2)"""


class QT(nn.Module):
    """f (Eq. 6) and the two heads g (Eq. 7)."""

    def __init__(self, config: QTConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        dim = config.embed_dim
        self.tokenizer = ActionTokenizer(config.bins, config.interpolate)
        self.state_embedding = StateEmbedding(obs_dim, dim, config.normalise)
        self.action_embedding = ActionEmbedding(action_dim, self.tokenizer, dim)
        self.position_embedding = nn.Embedding(action_dim, dim)
        self.trunk = Transformer(config)
        self.apply(init_weights)
        self.heads = nn.ModuleList(value_head(dim, config.bins) for _ in range(2))
        self.value_unit = Unit() if config.normalise else None

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return Q-values of every bin, given the action dimensions before it.

        observations [B, M]; actions [B, n] in [-1, 1], the dimensions 1..n taken, n <= N-1
        -> [2, B, n+1, K], dimensions 1..n+1, one layer per head.
        """
        check_shape(observations, "B M", M=self.obs_dim)
        tokens = self.state_embedding(observations).unsqueeze(1)  # [B, 1, D]
        if actions.shape[1] > 0:
            tokens = torch.cat([tokens, self.action_embedding(actions)], dim=1)  # [B, n+1, D]
        hidden = self.trunk(tokens + self.position_embedding.weight[: tokens.shape[1]])
        return torch.stack(self._q(hidden))

    def choose(
        self,
        observations: Tensor,
        chance: Tensor | None = None,
        which: Tensor | None = None,
        probability: float | Tensor = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Walk the dimensions greedily: observations [B, M] -> bins int64 [B, N], value [B].

        With `chance` and `which` (uniform in [0, 1), [B, N]) each bin is replaced by a uniform one with the given
        probability before the next dimension is chosen. The value is the maximum over the last dimension's bins.
        """
        check_shape(observations, "B M", M=self.obs_dim)
        cache = self.trunk.new_cache(len(observations), room=self.action_dim) if self.action_dim > 1 else None
        token = self.state_embedding(observations)  # [B, D]
        chosen: list[Tensor] = []
        for i in range(self.action_dim):
            if i > 0:
                token = self.action_embedding.embed_bins(chosen[-1].unsqueeze(1), first=i - 1).squeeze(1)
            hidden = self.trunk((token + self.position_embedding.weight[i]).unsqueeze(1), cache=cache)
            value, best = self._mean_q(hidden.squeeze(1)).max(dim=-1)  # [B], [B]
            if chance is not None and which is not None:
                best = self.tokenizer.replace(best, chance[:, i], which[:, i], probability)
            chosen.append(best)
        return torch.stack(chosen, dim=1), value

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
        token = self.state_embedding(observations) + self.position_embedding.weight[0]
        return self._mean_q(self.trunk(token.unsqueeze(1)).squeeze(1)).amax(dim=-1)

    def _mean_q(self, hidden: Tensor) -> Tensor:
        """Return mean of the two heads: [B, D] -> [B, K]."""
        first, second = self._q(hidden)
        return torch.lerp(first, second, 0.5)

    def _q(self, hidden: Tensor) -> list[Tensor]:
        """Compute each head's Q-values: [..., D] -> 2 times [..., K].

        Outside of autocast: in bfloat16 values around 50 are multiples of 0.25, so that many bins tie for the best, and
        the first of them, the most negative action, wins.
        """
        with outside_autocast(hidden.device):
            hidden = hidden.to(self.position_embedding.weight.dtype)
            values = [head(hidden) for head in self.heads]
            return values if self.value_unit is None else [self.value_unit.size * v for v in values]


def value_head(dim: int, bins: int) -> nn.Sequential:
    """Make MLP D -> D -> K with ReLU; the last layer starts at zero, so does every value."""
    last = nn.Linear(dim, bins)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last)
