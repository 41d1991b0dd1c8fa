"""The GPT-like trunk that TDM and QT share: pre-LayerNorm blocks, causal attention (paper, Section IV-A).

Two optimisations, both exact. `stride` says whose outputs anyone will look at, every `stride`-th token's counted back
from the last: the last block computes only those (its keys and values still come from all). `KeyValueCache` keeps what
earlier tokens left behind, so that a rollout feeds each token through the trunk once.
Two options of position and memory: with `rotary` tokens know how far apart they are (common/models/rotary.py), and with
`reach` each sees only so many tokens, itself the last; then what is out of reach may leave the cache.
S is the number of tokens in the input, C the number in the cache after it, R the number read.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.models.dropout import Dropout
from qttdm.common.models.rotary import rotate, rotation
from qttdm.common.models.scale import ObservationScale


class TrunkConfig(Config):
    """Size of a trunk."""

    embed_dim: int = Field(gt=0)
    """D, features per token"""
    num_heads: int = Field(gt=0)
    """attention heads; embed_dim is divisible by it"""
    num_layers: int = Field(gt=0)
    """transformer blocks"""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """on embeddings, attention and residual branches"""

    @model_validator(mode="after")
    def _heads_divide(self) -> TrunkConfig:
        if self.embed_dim % self.num_heads:
            fitting = [n for n in range(1, self.embed_dim + 1) if self.embed_dim % n == 0]
            raise ValueError(
                f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}; "
                f"num_heads may be one of {fitting}"
            )
        return self


class RotaryTrunkConfig(TrunkConfig):
    """Size of a trunk whose tokens know how far apart they are: features of a head turn in pairs."""

    @model_validator(mode="after")
    def _heads_are_even(self) -> RotaryTrunkConfig:
        if self.embed_dim // self.num_heads % 2:
            raise ValueError(
                f"embed_dim={self.embed_dim} with num_heads={self.num_heads} is {self.embed_dim // self.num_heads} a "
                f"head; want an even number"
            )
        return self


class TransformerConfig(TrunkConfig):
    """Size of a trunk, and how states and actions are given to it."""

    bins: int = Field(default=256, ge=2)
    """K, bins per action dimension"""
    interpolate: bool = False
    """an action between two bins counts as both, by its distance from each; else as the nearest, as in the paper"""
    state_hidden: int = Field(default=0, ge=0)
    """width of a hidden layer between a state and its token, normalised; 0: none, as in the paper"""
    normalise: bool = False
    """observations have mean 0 and standard deviation 1, as of what has been drawn; rewards or values size 1"""


class KeyValueCache:
    """Keys and values of the tokens seen so far, per layer: a rollout's memory."""

    def __init__(self, num_layers: int, num_heads: int, sequences: int, room: int, head_dim: int, like: Tensor) -> None:
        """Space for `room` tokens of each sequence, empty; dtype and device of `like`."""
        self.length = 0
        self.missing: Tensor | None = None
        """leading places that hold nothing, int64 [B], where sequences differ in length; None: no such places"""
        self.layers = [like.new_empty(2, sequences, num_heads, room, head_dim) for _ in range(num_layers)]

    def append(self, layer: int, keys_and_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, S, 2 D] behind the `length` present tokens -> keys and values, each [B * num_heads, C, d].

        RuntimeError if there is no room for them.
        """
        memory = self.layers[layer]  # [2, B, heads, room, d]
        batch, tokens, _ = keys_and_values.shape
        end = self.length + tokens
        if end > memory.shape[3]:  # torch would spread a single token over no place at all, and say nothing
            raise RuntimeError(
                f"{tokens} more than the {self.length} tokens in a cache with room for {memory.shape[3]}"
            )
        # [B, S, 2, heads, d] -> [2, B, heads, S, d], in one copy
        memory[:, :, :, self.length : end] = keys_and_values.view(
            batch, tokens, 2, memory.shape[2], memory.shape[4]
        ).permute(2, 0, 3, 1, 4)
        keys, values = memory.flatten(1, 2)[:, :, :end].unbind(0)
        return keys, values

    def select(self, index: Tensor, room: int, out: KeyValueCache | None = None) -> KeyValueCache:
        """Copy sequences by number, index int64 [B], into a cache with space for `room` tokens of each.

        out: a cache of that size whose content is no longer needed: its memory is used again.
        """
        _, _, num_heads, have, head_dim = self.layers[0].shape
        if have >= room:  # whole sequences, empty places too, are faster to copy than to move
            moved = copy.copy(self)
            moved.layers = [layer.index_select(1, index) for layer in self.layers]
            moved.missing = None if self.missing is None else self.missing[index]
            return moved
        if out is None or out.layers[0].shape[1] != len(index) or out.layers[0].shape[3] < room:
            out = KeyValueCache(len(self.layers), num_heads, len(index), room, head_dim, self.layers[0])
        for source, target in zip(self.layers, out.layers, strict=True):
            target[:, :, :, : self.length] = source[:, :, :, : self.length].index_select(1, index)
        out.length = self.length
        out.missing = None if self.missing is None else self.missing[index]
        return out

    def tails(self, index: Tensor, ends: Tensor, tokens: int, room: int) -> KeyValueCache:
        """Copy what stands before some places of rotary sequences: up to `tokens` tokens, with room for `room` more.

        index int64 [B], sequences; ends int64 [B], places in them. All are moved to end at one place, so keys turn.
        """
        _, _, num_heads, _, head_dim = self.layers[0].shape
        out = KeyValueCache(len(self.layers), num_heads, len(index), tokens + room, head_dim, self.layers[0].detach())
        places = ends[:, None] - tokens + torch.arange(tokens, device=ends.device)  # [B, C]
        cos, sin = rotation(tokens - ends, head_dim)
        moved = cos[:, None, None], sin[:, None, None]  # [B, 1, 1, d/2]
        for source, target in zip(self.layers, out.layers, strict=True):
            found = source.detach()[:, index[:, None], :, places.clamp_min(0)]  # [B, C, 2, heads, d]
            keys, values = found.permute(2, 0, 3, 1, 4)
            target[0, :, :, :tokens], target[1, :, :, :tokens] = rotate(keys, moved), values
        out.length, out.missing = tokens, (tokens - ends).clamp_min(0)
        return out


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave autocast, where it is on: entering its context takes as long as a small product."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


class StateEmbedding(nn.Linear):
    """States [..., M] -> [..., D], outside of autocast: bfloat16 would round a position to 4 mm.

    A state is one token among many, or the first of few: features of it are cheaper here than in a wider trunk.
    """

    def __init__(self, obs_dim: int, dim: int, hidden: int = 0, normalise: bool = False) -> None:
        """hidden: width of a layer before the last one, 0: none."""
        super().__init__(hidden or obs_dim, dim)
        self.hidden = nn.Sequential(nn.Linear(obs_dim, hidden), nn.LayerNorm(hidden), nn.ELU()) if hidden else None
        self.scale = ObservationScale(obs_dim) if normalise else None

    def forward(self, states: Tensor) -> Tensor:
        """Embed them, scaled if so configured, in the parameters' own precision."""
        with outside_autocast(states.device):
            states = states.to(self.weight.dtype)
            if self.scale is not None:
                states = self.scale(states)
            return super().forward(states if self.hidden is None else self.hidden(states))


@functools.lru_cache(maxsize=256)
def causal_mask(queries: int, keys: int, stride: int, device: torch.device, reach: int | None = None) -> Tensor:
    """Make bool [R, C], True where attention is allowed.

    The queries are every `stride`-th token counted back from the last; each sees itself and what precedes it, in all
    `reach` tokens where that is given.
    """
    with torch.inference_mode(False):  # it is kept, perhaps for one who wants gradients
        positions = (keys - 1 - stride * torch.arange(queries - 1, -1, -1, device=device))[:, None]  # [R, 1]
        places = torch.arange(keys, device=device)
        mask = places <= positions
        return mask if reach is None else mask & (places > positions - reach)


@functools.lru_cache(maxsize=256)
def causal_bias(
    queries: int, keys: int, stride: int, device: torch.device, dtype: torch.dtype, reach: int | None = None
) -> Tensor:
    """Make `causal_mask` numbers to add to the attention scores: [R, C], 0 where allowed and -inf elsewhere."""
    mask = causal_mask(queries, keys, stride, device, reach)
    with torch.inference_mode(False):
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, -math.inf)


Turn = tuple[Tensor, Tensor] | None


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what precedes it."""

    def __init__(self, config: TrunkConfig, reach: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.reach = config.num_heads, reach
        self.drop = Dropout(config.dropout)
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.projection = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, stride: int, cache: KeyValueCache | None, layer: int, turn: Turn = None) -> Tensor:
        """Attend: x [B, S, D] -> [B, R, D], the outputs of every `stride`-th token counted back from the last.

        turn: the rotation of the S tokens, [1 or B, S, d/2] each.
        """
        batch, tokens, dim = x.shape
        dropout = self.drop.probability if self.training else 0.0
        weight, bias = self.qkv.weight, self.qkv.bias
        if tokens == 1 and cache is None and dropout == 0:
            # A token alone attends to itself alone: its output is its own value.
            return self.projection(F.linear(x, weight[2 * dim :], bias[2 * dim :]))
        if stride == 1:
            q, keys_and_values = self.qkv(x).split([dim, 2 * dim], dim=-1)
        else:
            q = F.linear(x[:, (tokens - 1) % stride :: stride], weight[:dim], bias[:dim])  # [B, R, D]
            keys_and_values = F.linear(x, weight[dim:], bias[dim:])
        read = q.shape[1]
        if turn is not None:
            q, keys_and_values = self._turned(q, keys_and_values, turn, stride)
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, R, d]
        if cache is not None:
            k, v = cache.append(layer, keys_and_values)
            y = attend(q.flatten(0, 1), k, v, stride, self.drop, self.reach, cache.missing).view_as(q)
        else:
            k, v = keys_and_values.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, S, d]
            if dropout > 0 and x.device.type == "cpu":  # torch has no fused kernel for this, and draws masks slowly
                y = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), stride, self.drop, self.reach).view_as(q)
            else:
                reach = self.reach if self.reach is not None and self.reach < tokens else None
                mask = None if stride == 1 and reach is None else causal_mask(read, tokens, stride, x.device, reach)
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout)
        return self.projection(y.transpose(1, 2).reshape(batch, read, dim))

    def _turned(
        self, q: Tensor, keys_and_values: Tensor, turn: tuple[Tensor, Tensor], stride: int
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries [B, R, D] and the keys in [B, S, 2 D]."""
        cos, sin = (part.unsqueeze(2) for part in turn)  # of all heads
        first = (cos.shape[1] - 1) % stride
        asked = cos[:, first::stride], sin[:, first::stride]
        k, v = keys_and_values.chunk(2, dim=-1)
        q = rotate(q.unflatten(-1, (self.num_heads, -1)), asked).flatten(2)
        k = rotate(k.unflatten(-1, (self.num_heads, -1)), (cos, sin)).flatten(2)
        return q, torch.cat([k, v], dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    stride: int,
    drop: Callable[[Tensor], Tensor] = lambda weights: weights,
    reach: int | None = None,
    missing: Tensor | None = None,
) -> Tensor:
    """Attend in plain batched products: q [G, R, d], k and v [G, C, d] -> [G, R, d]; drop: of its weights.

    missing: int64 [B], of each sequence the leading keys that do not exist; G is B times the heads.
    With a handful of tokens a sequence they take a third of the time that torch's fused kernel takes on a CPU.
    """
    bias = causal_bias(q.shape[1], k.shape[1], stride, q.device, q.dtype, reach)
    if missing is not None:
        gone = torch.arange(k.shape[1], device=k.device) < missing[:, None]  # [B, C]
        bias = bias.masked_fill(gone[:, None], -math.inf).repeat_interleave(len(q) // len(missing), dim=0)
    scores = torch.baddbmm(bias.expand(q.shape[0], -1, -1), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.bmm(drop(scores.softmax(dim=-1)), v)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TrunkConfig, reach: int | None = None) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm_1 = nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(config, reach)
        self.norm_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, stride: int, cache: KeyValueCache | None, layer: int, turn: Turn = None) -> Tensor:
        """Apply the block: x [B, S, D] -> [B, R, D]."""
        y = self.attention(self.norm_1(x), stride, cache, layer, turn)
        x = x[:, (x.shape[1] - 1) % stride :: stride] + self.drop(y)
        return x + self.drop(self.mlp(self.norm_2(x)))


class Transformer(nn.Module):
    """Blocks and a final LayerNorm; Linear and Embedding weights N(0, 0.02), biases 0 (see `init_weights`)."""

    def __init__(self, config: TrunkConfig, rotary: bool = False, reach: int | None = None) -> None:
        """rotary: positions are the trunk's own; else what is fed in must hold them. reach: tokens that each sees."""
        super().__init__()
        self.config, self.rotary, self.reach = config, rotary, reach
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, reach) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor, stride: int = 1, cache: KeyValueCache | None = None) -> Tensor:
        """Apply all blocks: x [B, S, D] -> outputs [B, R, D] of every `stride`-th token counted back from the last.

        With a cache, x continues the tokens in it, and is added to it (inference only).
        """
        tokens = x.shape[1]
        x = self.drop(x)
        turn = self._turn(tokens, cache, x.device) if self.rotary else None
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            x = block(x, stride if layer == last else 1, cache, layer, turn)
        if cache is not None:
            cache.length += tokens
        return self.norm(x)

    def _turn(self, tokens: int, cache: KeyValueCache | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rotation of the next tokens, [1, S, d/2] each, where they will stand in the cache."""
        first = 0 if cache is None else cache.length
        positions = torch.arange(first, first + tokens, device=device)[None]
        return rotation(positions, self.config.embed_dim // self.config.num_heads)

    def new_cache(self, sequences: int, room: int) -> KeyValueCache:
        """Make an empty cache for `room` tokens of each of `sequences` sequences, in the dtype of keys and values."""
        c = self.config
        like = self.norm.weight.detach()
        device = like.device.type
        if torch.is_autocast_enabled(device):
            like = like.to(torch.get_autocast_dtype(device))
        return KeyValueCache(c.num_layers, c.num_heads, sequences, room, c.embed_dim // c.num_heads, like)


def init_weights(module: nn.Module) -> None:
    """Initialise as GPT-2, for `module.apply`: weights N(0, 0.02), biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
