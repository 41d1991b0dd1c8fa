"""Rotary positions (Su et al., 2021): turn queries and keys by their position, so that attention knows distances alone.

A pair of features (x, y) at position p is turned by the angle p * frequency. The product of a query and a key then
depends on the difference of their positions: keys stay as they are in a cache from whose front older ones leave.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
"""of the wavelengths, the longest is 2 pi BASE tokens"""


def rotation(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [.., d/2] of the angles of positions [..], float or integer."""
    half = head_dim // 2
    frequencies = BASE ** (-torch.arange(half, device=positions.device) / half)
    angles = positions.unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [.., d], whose halves are the pairs' first and second features."""
    cos, sin = (part.to(x.dtype) for part in turn)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
