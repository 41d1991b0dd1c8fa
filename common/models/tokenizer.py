"""Actions as tokens: each dimension of [-1, 1] is cut into K evenly spaced values, one bin each (paper, Section IV-A).

Choice: bin k stands for the value -1 + 2k / (K-1), so -1 and +1 are both reachable and rounding has no bias. The
published implementation decodes a bin to its left edge: +1 is never reached and every action is biased low.

With `interpolate` an action between two bins is not rounded: it counts as both, by its distance from each (linear
interpolation). Whatever is learned for a bin holds around it, so a few bins do, and each learns from most actions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ActionTokenizer:
    """Between action values in [-1, 1] and bins 0..K-1. Stateless arithmetic, on whatever device its input is."""

    def __init__(self, bins: int, interpolate: bool = False) -> None:
        assert bins >= 2, bins
        self.bins, self.interpolate = bins, interpolate

    def encode(self, actions: Tensor) -> Tensor:
        """Find the nearest bin: values in [-1, 1], any shape -> int64, same shape. Values beyond are clamped."""
        return ((actions.clamp(-1.0, 1.0) + 1.0) * (0.5 * (self.bins - 1))).round().long()

    def decode(self, bins: Tensor) -> Tensor:
        """Value of a bin: int64, any shape -> float32, same shape."""
        return bins / (0.5 * (self.bins - 1)) - 1.0  # division: exactly +1 for the last bin, whatever K

    def snap(self, actions: Tensor) -> Tensor:
        """Round to the nearest bin's value: decode(encode(actions)), without leaving floating point."""
        half = 0.5 * (self.bins - 1)
        return ((actions.clamp(-1.0, 1.0) + 1.0) * half).round() / half - 1.0

    def quantise(self, actions: Tensor) -> Tensor:
        """Return the actions that can be told apart: the nearest bins' values, or all in [-1, 1]; any shape."""
        return actions.clamp(-1.0, 1.0) if self.interpolate else self.snap(actions)

    def uniform(self, chance: Tensor) -> Tensor:
        """Draw uniform actions, of the bins' values or all: uniforms in [0, 1), any shape -> float32, same shape."""
        return 2.0 * chance - 1.0 if self.interpolate else self.decode((chance * self.bins).long())

    def weights(self, actions: Tensor) -> Tensor:
        """Interpolate: values in [-1, 1], any shape -> each bin's weight, [..., K], of which two at most are not 0."""
        position = (actions.clamp(-1.0, 1.0) + 1.0) * (0.5 * (self.bins - 1))
        bins = torch.arange(self.bins, device=actions.device, dtype=actions.dtype)
        return (1.0 - (position.unsqueeze(-1) - bins).abs()).clamp_min(0.0)

    def read(self, values: Tensor, actions: Tensor) -> Tensor:
        """Read a function of the action at `actions` [...], given its values at the bins [heads, ..., K]."""
        if self.interpolate:
            return (values * self.weights(actions)).sum(dim=-1)
        bins = self.encode(actions).expand(values.shape[:-1])
        return values.gather(-1, bins.unsqueeze(-1)).squeeze(-1)

    def replace(self, bins: Tensor, chance: Tensor, which: Tensor, probability: float | Tensor) -> Tensor:
        """Replace each bin by a uniform one where chance < probability.

        bins int64, chance and which uniform in [0, 1), all of one shape -> int64, same shape.
        """
        return torch.where(chance < probability, (which * self.bins).long(), bins)


class ActionEmbedding(nn.Module):
    """A table of K embeddings for each action dimension, looked up with a per-dimension offset into one table.

    (The published implementation multiplies an expanded [B, L, N, K, D] tensor instead, and starts it at zero.)
    """

    offsets: Tensor

    def __init__(self, action_dim: int, tokenizer: ActionTokenizer, embed_dim: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.table = nn.Embedding(action_dim * tokenizer.bins, embed_dim)
        self.register_buffer("offsets", torch.arange(action_dim) * tokenizer.bins, persistent=False)

    def forward(self, actions: Tensor, first: int = 0) -> Tensor:
        """Embed actions [..., n], of the dimensions first .. first+n-1 -> [..., n, D]."""
        if self.tokenizer.interpolate:
            rows = self.table.weight.unflatten(0, (-1, self.tokenizer.bins))  # [N, K, D]
            rows = rows[first : first + actions.shape[-1]]  # [n, K, D]
            return torch.einsum("...nk,nkd->...nd", self.tokenizer.weights(actions), rows)
        return self.embed_bins(self.tokenizer.encode(actions), first)

    def embed_bins(self, bins: Tensor, first: int = 0) -> Tensor:
        """Embed bins [..., n] of the dimensions first .. first+n-1 -> [..., n, D]."""
        return self.table(bins + self.offsets[first : first + bins.shape[-1]])

    def sum(self, actions: Tensor) -> Tensor:
        """Embed actions [..., N] as one token, the sum over all dimensions -> [..., D]."""
        if self.tokenizer.interpolate:
            return self.tokenizer.weights(actions).flatten(-2) @ self.table.weight
        return self(actions).sum(dim=-2)
