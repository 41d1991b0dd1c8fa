"""A sequence model of token-per-scalar steps (Trajectory Transformer; Janner et al., 2021), a GPT over bins.

A step is a row of input slots, one token each; `Layout` says which and in what order. The trunk's output at a token
gives the distribution of the next slot; at the last token of a step also what is only read, never fed back:

    s_t^1 .. s_t^M  a_t^1 .. a_t^N -> r_t, R_t, whether the episode goes on      s_{t+1}^1 ..

Choice: rewards r_t and values R_t (the return from step t+1 on) are outputs and no inputs. In the published code they
are tokens: two more passes a step; what is guessed of the future must be masked from what follows, and still leaks by
the residual stream; and whoever acts has to be told the rewards it gets. Nothing can leak from what is no input.

Positions count from the first step of a window or a plan, and do not move as the plan grows: so keys and values are
computed once (`KeyValueCache`). With a goal, its tokens stand in front of all, with a table of their own and without
positions.

Letters beyond the usual: K input slots of a step, O outputs, V bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.models.tokens import ScalarTokens
from qttdm.common.models.transformer import (
    KeyValueCache,
    Transformer,
    TrunkConfig,
    init_weights,
    outside_autocast,
)
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree


class SequenceModelConfig(TrunkConfig):
    """Size of the sequence model; defaults are the published ones."""

    embed_dim: int = Field(default=128, gt=0)
    """D, features per token"""
    num_heads: int = Field(default=4, gt=0)
    """attention heads; embed_dim is divisible by it"""
    num_layers: int = Field(default=4, gt=0)
    """transformer blocks"""
    window: int = Field(default=24, gt=0)
    """L, steps of a training window; context and plan fit into it together"""
    bins: int = Field(default=100, ge=2)
    """V, bins per dimension of observations, actions, rewards and values"""
    tokens: Literal["quantile", "uniform", "mu-law"] = "quantile"
    """where bins end: as much data in each; equal widths; or by size, whatever the data (common/models/tokens.py)"""


@dataclass(frozen=True)
class Layout:
    """What a step is made of, in its order: how many numbers each has."""

    inputs: Mapping[str, int]
    """one token for each number; `observations` come first"""
    outputs: tuple[str, ...]
    """one number each, read at the step's last token"""

    @property
    def slots(self) -> int:
        """K, input tokens of a step."""
        return sum(self.inputs.values())

    def first(self, name: str) -> int:
        """Return the number of an input's first slot."""
        before = list(self.inputs)[: list(self.inputs).index(name)]
        return sum(self.inputs[other] for other in before)


@dataclass(frozen=True)
class Outcome:
    """What follows from a step; leading dimensions [B] or [B, L]."""

    logits: Mapping[str, Tensor]
    """of each output's bins, [.., V]"""
    continuation_logits: Tensor | None
    """log-odds that the episode goes on, [..]; None for tasks that cannot terminate"""


@dataclass(frozen=True)
class Step:
    """What is predicted of one imagined step, [B] each."""

    rewards: Tensor
    continuation_logits: Tensor | None


@dataclass
class Sequences:
    """Sequences being imagined: the trunk's memory of them, and its output at their newest token."""

    cache: KeyValueCache
    hidden: Tensor
    """[B, D]"""
    tokens: int
    """fed so far, without a goal's"""
    bins: Tensor
    """of the newest observations, int64 [B, M]"""


class SequenceModel(nn.Module):
    """Distributions of the next slot and of a step's outputs, over whole windows or token by token."""

    def __init__(self, config: SequenceModelConfig, layout: Layout, can_terminate: bool, goals: bool = False) -> None:
        """goals: sequences may begin with an observation to be reached."""
        super().__init__()
        self.config, self.layout = config, layout
        dim, slots, bins = config.embed_dim, layout.slots, config.bins
        self.obs_dim = layout.inputs["observations"]
        self.tokens = ScalarTokens(config.tokens, slots + len(layout.outputs), bins)  # inputs, then outputs
        self.token_embedding = nn.Embedding(slots * bins, dim)
        self.goal_embedding = nn.Embedding(self.obs_dim * bins, dim) if goals else None
        self.position_embedding = nn.Embedding(config.window * slots + self.obs_dim, dim)
        self.trunk = Transformer(config)
        self.apply(init_weights)
        self.heads = nn.Parameter(0.02 * torch.randn(slots + len(layout.outputs), bins, dim))
        self.continuation_head = nn.Linear(dim, 1) if can_terminate else None
        self.register_buffer("offsets", torch.arange(slots) * bins, persistent=False)

    offsets: Tensor

    def embed(self, bins: Tensor, first: int, position: int) -> Tensor:
        """Embed bins [B, S] of consecutive tokens, the first in that slot and at that position: [B, S, D]."""
        tokens = bins.shape[1]
        slots = (first + torch.arange(tokens, device=bins.device)) % self.layout.slots
        positions = self.position_embedding.weight[position : position + tokens]
        return self.token_embedding(bins + self.offsets[slots]) + positions

    def forward(self, bins: Tensor, goals: Tensor | None = None) -> tuple[Tensor, Outcome]:
        """Read whole windows.

        bins int64 [B, L K + M]: all steps' inputs and the observation after the last. goals: int64 [B, M].
        Returns logits of each next token but the first, [B, L K + M - 1, V], and the outcomes of the steps, [B, L, ..].
        """
        check_shape(bins, "B S", S=self.config.window * self.layout.slots + self.obs_dim)
        x = self.embed(bins[:, :-1], 0, 0)
        prefix = 0
        if goals is not None:
            x = torch.cat([self._embed_goals(goals), x], dim=1)
            prefix = self.obs_dim
        hidden = self.trunk(x)[:, prefix:]  # [B, S-1, D]
        slots, window = self.layout.slots, self.config.window
        next_slot = torch.arange(1, slots + 1, device=bins.device) % slots
        whole = hidden[:, : window * slots].unflatten(1, (window, slots))  # [B, L, K, D]
        logits = torch.einsum("blkd,kvd->blkv", whole, self.heads[next_slot]).flatten(1, 2)
        if self.obs_dim > 1:  # the observation after the last step
            rest = hidden[:, window * slots :]
            logits = torch.cat([logits, torch.einsum("bkd,kvd->bkv", rest, self.heads[1 : self.obs_dim])], dim=1)
        return logits, self.outcome(whole[:, :, -1])

    def outcome(self, hidden: Tensor) -> Outcome:
        """Read what follows from steps, at their last tokens: [.., D]."""
        first = self.layout.slots
        logits = torch.einsum("...d,ovd->o...v", hidden, self.heads[first:])
        with outside_autocast(hidden.device):
            head = self.continuation_head
            goes_on = None if head is None else head(hidden.to(head.weight.dtype)).squeeze(-1)
        return Outcome(dict(zip(self.layout.outputs, logits, strict=True)), goes_on)

    def mean(self, outcome: Outcome, name: str) -> Tensor:
        """Return the expected number of an output: [..]."""
        return self.tokens.expectation(outcome.logits[name].float().softmax(dim=-1), self.column(name))

    def column(self, name: str) -> int:
        """Return the number of an output's column of tokens."""
        return self.layout.slots + self.layout.outputs.index(name)

    def begin(self, bins: Tensor, goals: Tensor | None = None, room: int = 0) -> Sequences:
        """Read sequences that end with an observation: int64 [E, n K + M]; goals: int64 [E, M].

        room: for so many steps more, also in copies by `select`, which then need not be moved.
        """
        x = self.embed(bins, 0, 0)
        if goals is not None:
            x = torch.cat([self._embed_goals(goals), x], dim=1)
        cache = self.trunk.new_cache(len(bins), x.shape[1] + room * self.layout.slots)
        hidden = self.trunk(x, stride=x.shape[1], cache=cache).squeeze(1)
        return Sequences(cache, hidden, bins.shape[1], bins[:, -self.obs_dim :])

    def next(self, sequences: Sequences) -> Tensor:
        """Return logits of the next token, [B, V]."""
        return sequences.hidden @ self.heads[sequences.tokens % self.layout.slots].T

    def feed(self, sequences: Sequences, bins: Tensor) -> None:
        """Add one token to each sequence, int64 [B]."""
        x = self.embed(bins[:, None], sequences.tokens % self.layout.slots, sequences.tokens)
        sequences.hidden = self.trunk(x, cache=sequences.cache).squeeze(1)
        sequences.tokens += 1

    def imagine(self, sequences: Sequences) -> None:
        """Feed the likeliest next observation, dimension by dimension."""
        bins = []
        for _ in range(self.obs_dim):
            bins.append(self.next(sequences).argmax(dim=-1))
            self.feed(sequences, bins[-1])
        sequences.bins = torch.stack(bins, dim=-1)

    def start(self, context: TensorTree) -> Sequences:
        """Begin at the newest observations, without a history: as contracts.DynamicsModel."""
        return self.begin(self.tokens.encode(context["observations"]))

    def select(self, rollout: Sequences, index: Tensor, room: int, out: Sequences | None = None) -> Sequences:
        """Copy sequences by number, int64 [B], with room for so many steps: as contracts.DynamicsModel."""
        tokens = rollout.cache.length + room * self.layout.slots
        cache = rollout.cache.select(index, tokens, out.cache if out is not None else None)
        return Sequences(cache, rollout.hidden[index], rollout.tokens, rollout.bins[index])

    def step(self, rollout: Sequences, actions: Tensor) -> Step:
        """Take actions [B, N], and imagine the likeliest observation after them: as contracts.DynamicsModel."""
        for bins in self.tokens.encode(actions, self.layout.first("actions")).unbind(dim=-1):
            self.feed(rollout, bins)
        outcome = self.outcome(rollout.hidden)
        self.imagine(rollout)
        return Step(self.mean(outcome, "rewards"), outcome.continuation_logits)

    def state(self, rollout: Sequences) -> TensorTree:
        """Return the newest observations, [B, M]."""
        return {"observations": self.tokens.decode(rollout.bins)}

    def quantise(self, actions: Tensor) -> Tensor:
        """Bring actions [.., N] to the middle of their bins."""
        first = self.layout.first("actions")
        return self.tokens.decode(self.tokens.encode(actions, first), first)

    def uniform(self, chance: Tensor) -> Tensor:
        """Turn uniforms in [0, 1), [.., N], into actions uniform in the box."""
        return 2.0 * chance - 1.0

    def _embed_goals(self, goals: Tensor) -> Tensor:
        assert self.goal_embedding is not None, "this model was made without goals"
        return self.goal_embedding(goals + self.offsets[: self.obs_dim])
