"""Actions as tokens: each dimension of [-1, 1] is cut into K evenly spaced values, one bin each (paper, Section IV-A).

Choice: bin k stands for the value -1 + 2k / (K-1), so -1 and +1 are both reachable and rounding has no bias. The
published implementation decodes a bin to its left edge: +1 is never reached and every action is biased low.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ActionTokenizer:
    """Between action values in [-1, 1] and bins 0..K-1. Stateless arithmetic, on whatever device its input is."""

    def __init__(self, bins: int) -> None:
        assert bins >= 2, bins
        self.bins = bins

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

    def uniform(self, chance: Tensor) -> Tensor:
        """Draw the values of uniform bins: uniforms in [0, 1), any shape -> float32, same shape."""
        return self.decode((chance * self.bins).long())

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

    def __init__(self, action_dim: int, bins: int, embed_dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(action_dim * bins, embed_dim)
        self.register_buffer("offsets", torch.arange(action_dim) * bins, persistent=False)

    def forward(self, bins: Tensor, first: int = 0) -> Tensor:
        """Embed bins [..., n] of the dimensions first .. first+n-1 -> [..., n, D]."""
        return self.table(bins + self.offsets[first : first + bins.shape[-1]])
