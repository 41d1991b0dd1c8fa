"""A sequence model of token-per-scalar steps (Trajectory Transformer; Janner et al., 2021), a GPT over bins.

A step is a row of input slots, one token each; `Layout` says which and in what order. The trunk's output at a token
gives the distribution of the next slot; at the last token of a step also what is only read, never fed back:

    s_t^1 .. s_t^M  a_t^1 .. a_t^N -> r_t, R_t, whether the episode goes on      s_{t+1}^1 ..

A generalist dynamics model (Schubert et al., 2023) is the same with another layout. There the reward that came with an
observation is a token behind it, and a constant parts what is given from what is chosen:

    o_t^1 .. o_t^M  r_t  |  a_t^1 .. a_t^N       o_{t+1}^1 ..

so the same weights say what is earned, (h, o) -> r, what is done, (h, o, r) -> a, and what follows, (h, o, r, a) -> o'.
With `shared` it has one set of bins, one table and one head for all numbers of an input, told apart by a table of their
places: then it reads tasks whose observations and actions differ in length, one after the other (`use`).

Choice: the Trajectory Transformer's rewards r_t and values R_t (the return from step t+1 on) are outputs and no inputs.
In the published code they are tokens: two more passes a step; what is guessed of the future must be masked from what
follows, and still leaks by the residual stream; and whoever acts has to be told the rewards it gets. Nothing can leak
from what is no input. A generalist's rewards are of the past, and where nobody tells them its own guesses stand in.

Positions are rotary: a token knows how far back another stands; what it learns at one place of a window holds at all.
Choice: published is a table of absolute positions, which learns anew at each place where the others of its step are;
what that costs: docs/results.md. Keys and values do not move as a plan grows, so they are computed once
(`KeyValueCache`). With a goal, its tokens stand in front of all, with a table of their own.

Letters beyond the usual: K input slots of a step, O outputs, V bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.models.box import BoxActions
from qttdm.common.models.tokens import ScalarTokens
from qttdm.common.models.transformer import (
    KeyValueCache,
    RotaryTrunkConfig,
    Transformer,
    init_weights,
    outside_autocast,
)
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree


class SequenceModelConfig(RotaryTrunkConfig):
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
    shared: bool = False
    """all numbers of an input (observations, actions, ..) share bins, table and head: for many tasks at once"""
    most_numbers: int = Field(default=64, gt=0)
    """of an input, where `shared`: longer observations or actions cannot be read"""


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

    @property
    def imagines_rewards(self) -> bool:
        """Are rewards tokens, behind the observations that they came with? Then a constant, the separator, follows."""
        return "rewards" in self.inputs

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
    """that `hidden` stands behind, without a goal's; those of `waiting` come next"""
    bins: Tensor
    """of the newest observations, int64 [B, M]"""
    waiting: Tensor | None = None
    """bins of the reward that came with them, and of the separator, int64 [B, 2], which are not fed yet"""


class SequenceModel(BoxActions, nn.Module):
    """Distributions of the next slot and of a step's outputs, over whole windows or token by token."""

    def __init__(self, config: SequenceModelConfig, layout: Layout, can_terminate: bool, goals: bool = False) -> None:
        """goals: sequences may begin with an observation to be reached."""
        super().__init__()
        self.config, self.layout = config, layout
        dim, slots, bins = config.embed_dim, layout.slots, config.bins
        self.obs_dim = layout.inputs["observations"]
        kinds = len(layout.inputs) if config.shared else slots
        self.tokens = ScalarTokens(config.tokens, kinds + len(layout.outputs), bins)  # inputs, then outputs
        self.token_embedding = nn.Embedding(kinds * bins, dim)
        self.goal_embedding = nn.Embedding(self.obs_dim * bins, dim) if goals else None
        self.place_embedding = nn.Embedding(kinds * config.most_numbers, dim) if config.shared else None
        self.trunk = Transformer(config, rotary=True)
        self.apply(init_weights)
        self.heads = nn.Parameter(0.02 * torch.randn(kinds + len(layout.outputs), bins, dim))
        self.continuation_head = nn.Linear(dim, 1) if can_terminate else None
        self.kinds = kinds
        self.use(layout)

    @property
    def window(self) -> int:
        """Return how many steps a sequence may have."""
        return self.config.window

    @property
    def slots(self) -> int:
        """Return K, input tokens of a step."""
        return self.layout.slots

    columns: Tensor
    """of each slot, int64 [K]"""
    places: Tensor
    """rows of `place_embedding` of each slot, int64 [K]"""

    def use(self, layout: Layout) -> None:
        """Read tasks of that layout from here on: of the same inputs, which differ in length only where `shared`."""
        self.layout, self.obs_dim = layout, layout.inputs["observations"]
        columns, places = torch.arange(layout.slots), torch.zeros(layout.slots, dtype=torch.int64)
        if self.config.shared:
            most = self.config.most_numbers
            assert max(layout.inputs.values()) <= most, (layout.inputs, most)
            columns = torch.arange(self.kinds).repeat_interleave(torch.tensor([*layout.inputs.values()]))
            places = torch.cat([kind * most + torch.arange(n) for kind, n in enumerate(layout.inputs.values())])
        device = self.heads.device
        self.register_buffer("columns", columns.to(device), persistent=False)
        self.register_buffer("places", places.to(device), persistent=False)

    def columns_of(self, name: str) -> Tensor:
        """Return the columns of an input's numbers, int64 [n]."""
        first = self.layout.first(name)
        return self.columns[first : first + self.layout.inputs[name]]

    def embed(self, bins: Tensor, first: int) -> Tensor:
        """Embed bins [B, S] of consecutive tokens, the first in that slot: [B, S, D]."""
        slots = (first + torch.arange(bins.shape[1], device=bins.device)) % self.layout.slots
        embedded = self.token_embedding(bins + self.columns[slots] * self.config.bins)
        return embedded if self.place_embedding is None else embedded + self.place_embedding(self.places[slots])

    def forward(self, bins: Tensor, goals: Tensor | None = None) -> tuple[Tensor, Outcome]:
        """Read whole windows.

        bins int64 [B, L K + M]: all steps' inputs and the observation after the last. goals: int64 [B, M].
        Returns logits of each next token but the first, [B, L K + M - 1, V], and the outcomes of the steps, [B, L, ..].
        """
        check_shape(bins, "B S", S=self.config.window * self.layout.slots + self.obs_dim)
        x = self.embed(bins[:, :-1], 0)
        prefix = 0
        if goals is not None:
            x = torch.cat([self._embed_goals(goals), x], dim=1)
            prefix = self.obs_dim
        hidden = self.trunk(x)[:, prefix:]  # [B, S-1, D]
        slots, window = self.layout.slots, self.config.window
        next_slot = torch.arange(1, slots + 1, device=bins.device) % slots
        whole = hidden[:, : window * slots].unflatten(1, (window, slots))  # [B, L, K, D]
        logits = torch.einsum("blkd,kvd->blkv", whole, self.heads[self.columns[next_slot]]).flatten(1, 2)
        if self.obs_dim > 1:  # the observation after the last step
            rest = hidden[:, window * slots :]
            logits = torch.cat(
                [logits, torch.einsum("bkd,kvd->bkv", rest, self.heads[self.columns[1 : self.obs_dim]])], dim=1
            )
        return logits, self.outcome(whole[:, :, -1])

    def outcome(self, hidden: Tensor) -> Outcome:
        """Read what follows from steps, at their last tokens: [.., D]."""
        logits = torch.einsum("...d,ovd->o...v", hidden, self.heads[self.kinds :])
        with outside_autocast(hidden.device):
            head = self.continuation_head
            goes_on = None if head is None else head(hidden.to(head.weight.dtype)).squeeze(-1)
        return Outcome(dict(zip(self.layout.outputs, logits, strict=True)), goes_on)

    def mean(self, outcome: Outcome, name: str) -> Tensor:
        """Return the expected number of an output: [..]."""
        return self.tokens.expectation(outcome.logits[name].float().softmax(dim=-1), self.column(name))

    def column(self, name: str) -> int:
        """Return the number of an output's column of tokens."""
        return self.kinds + self.layout.outputs.index(name)

    def begin(self, bins: Tensor, goals: Tensor | None = None, room: int = 0) -> Sequences:
        """Read sequences that end with an observation: int64 [E, n K + M]; goals: int64 [E, M].

        room: for so many steps more, also in copies by `select`, which then need not be moved.
        """
        x = self.embed(bins, 0)
        if goals is not None:
            x = torch.cat([self._embed_goals(goals), x], dim=1)
        cache = self.trunk.new_cache(len(bins), x.shape[1] + room * self.layout.slots)
        hidden = self.trunk(x, stride=x.shape[1], cache=cache).squeeze(1)
        return Sequences(cache, hidden, bins.shape[1], bins[:, -self.obs_dim :])

    def next(self, sequences: Sequences) -> Tensor:
        """Return logits of the next token, [B, V]."""
        return sequences.hidden @ self.heads[self.columns[sequences.tokens % self.layout.slots]].T

    def feed(self, sequences: Sequences, bins: Tensor) -> None:
        """Add one token to each sequence, int64 [B], or several at once, [B, S]."""
        bins = bins[:, None] if bins.ndim == 1 else bins
        tokens = bins.shape[1]
        x = self.embed(bins, sequences.tokens % self.layout.slots)
        sequences.hidden = self.trunk(x, stride=tokens, cache=sequences.cache).squeeze(1)
        sequences.tokens += tokens

    def imagine(self, sequences: Sequences) -> None:
        """Feed the likeliest next observation, dimension by dimension."""
        bins = []
        for _ in range(self.obs_dim):
            bins.append(self.next(sequences).argmax(dim=-1))
            self.feed(sequences, bins[-1])
        sequences.bins = torch.stack(bins, dim=-1)

    def imagine_rewards(self, sequences: Sequences) -> Tensor:
        """Read the reward that came with the newest observations, [B]; its likeliest bin is what is fed next."""
        logits, columns = self.next(sequences), self.columns_of("rewards")
        likeliest = logits.argmax(dim=-1)
        sequences.waiting = torch.stack([likeliest, torch.zeros_like(likeliest)], dim=-1)
        return self.tokens.expectation(logits.float().softmax(dim=-1), int(columns[0]))

    def act(self, rollout: Sequences, actions: Tensor, noise: Tensor, proposed: Tensor) -> tuple[Tensor, Step]:
        """Take actions [B, N], or where `proposed` [B] its policy's means plus noise: as contracts.RememberingModel.

        Each number depends on those before it.
        """
        if rollout.waiting is not None:
            self.feed(rollout, rollout.waiting)
        taken = []
        for n, column in enumerate(self.columns_of("actions")):
            mean = self.tokens.expectation(self.next(rollout).float().softmax(dim=-1), int(column))
            wanted = torch.where(proposed, (mean + noise[:, n]).clamp(-1, 1), actions[:, n])
            bins = self.tokens.encode(wanted[:, None], column[None])
            self.feed(rollout, bins)
            taken.append(self.tokens.decode(bins, column[None]))
        return torch.cat(taken, dim=-1), self._follow(rollout)

    def start(self, context: TensorTree) -> Sequences:
        """Begin at the newest observations, as contracts.DynamicsModel.

        context may hold `history`, bins of the steps before, int64 [E, n K], as `remember` returns them.
        """
        now = self.tokens.encode(context["observations"], self.columns_of("observations"))
        sequences = self.begin(torch.cat([context["history"], now], dim=1) if "history" in context else now)
        if self.layout.imagines_rewards:
            self.imagine_rewards(sequences)
        return sequences

    def remember(self, root: Sequences, actions: Tensor) -> Tensor:
        """Make a root's newest step into bins, given the actions [E, N] that were chosen: int64 [E, K].

        A reward among them is the one that the model expects: whoever acts is not told it, nor is who plans for him.
        """
        acted = self.tokens.encode(actions, self.columns_of("actions"))
        return torch.cat([root.bins, *([] if root.waiting is None else [root.waiting]), acted], dim=1)

    def select(self, rollout: Sequences, index: Tensor, room: int, out: Sequences | None = None) -> Sequences:
        """Copy sequences by number, int64 [B], with room for so many steps: as contracts.DynamicsModel."""
        tokens = rollout.cache.length + room * self.layout.slots
        cache = rollout.cache.select(index, tokens, out.cache if out is not None else None)
        waiting = None if rollout.waiting is None else rollout.waiting[index]
        return Sequences(cache, rollout.hidden[index], rollout.tokens, rollout.bins[index], waiting)

    def step(self, rollout: Sequences, actions: Tensor) -> Step:
        """Take actions [B, N]: as contracts.DynamicsModel."""
        bins = self.tokens.encode(actions, self.columns_of("actions"))
        self.feed(rollout, bins if rollout.waiting is None else torch.cat([rollout.waiting, bins], dim=1))
        return self._follow(rollout)

    def _follow(self, rollout: Sequences) -> Step:
        """Read what follows from the actions fed, and imagine the likeliest observation after them."""
        outcome = self.outcome(rollout.hidden)
        self.imagine(rollout)
        rewards = self.imagine_rewards(rollout) if self.layout.imagines_rewards else self.mean(outcome, "rewards")
        return Step(rewards, outcome.continuation_logits)

    def state(self, rollout: Sequences) -> TensorTree:
        """Return the newest observations, [B, M]."""
        return {"observations": self.tokens.decode(rollout.bins, self.columns_of("observations"))}

    def quantise(self, actions: Tensor) -> Tensor:
        """Bring actions [.., N] to the middle of their bins."""
        columns = self.columns_of("actions")
        return self.tokens.decode(self.tokens.encode(actions, columns), columns)

    def _embed_goals(self, goals: Tensor) -> Tensor:
        assert self.goal_embedding is not None, "this model was made without goals"
        return self.goal_embedding(goals + torch.arange(self.obs_dim, device=goals.device) * self.config.bins)
