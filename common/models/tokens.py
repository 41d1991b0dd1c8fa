"""Numbers as tokens: each column of data is cut into at most V bins, and a bin is decoded to one number.

    columns [n, S] --uniform | quantile | mu_law--> edges, centres --> ScalarTokens: encode, decode, expectation

Bin k of a column holds the numbers from edge k-1 (or below all) up to edge k (not included, or above all). The kinds
differ only in where the edges are:

    uniform    equal widths from the smallest number to the largest
    quantile   about as many numbers in each; a number that makes up more than 1/V of the data is an atom: it has a bin
               of its own, and is decoded exactly (rewards are mostly 0)
    mu_law     equal widths of sign(x) ln(1 + mu |x|) / ln(1 + mu M), for all columns alike, whatever the data (Gato)

As in the published code of the Trajectory Transformer a bin is decoded to the middle of its edges. There equal edges
of rare rewards make bins without width, whose numbers are encoded differently after they were decoded; here edges
differ, and unused bins are at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Cut = tuple[Tensor, Tensor]
"""edges, ascending, fewer than V; centres, one more than edges"""
UNUSED = torch.finfo(torch.float32).max
"""an edge that no number reaches"""
MU, LARGEST = 100.0, 256.0
"""of mu_law: how unequal the bins are, and the largest size that can be told apart"""


def uniform(column: Tensor, bins: int) -> Cut:
    """Cut float64 [n] into equal widths; a constant is one bin."""
    low, high = column.min(), column.max()
    if low == high:
        return low.new_empty(0), low[None]
    edges = torch.linspace(float(low), float(high), bins + 1, dtype=column.dtype)
    return edges[1:-1], (edges[1:] + edges[:-1]) / 2


def quantile(column: Tensor, bins: int) -> Cut:
    """Cut float64 [n] into bins of about as many numbers, atoms into bins of their own."""
    values, counts = column.unique(return_counts=True)  # ascending
    if len(values) <= bins:  # each number is an atom
        return (values[1:] + values[:-1]) / 2, values
    most = counts.sort(descending=True, stable=True).indices[: (bins - 1) // 2]
    is_atom = torch.zeros(len(values), dtype=torch.bool)
    is_atom[most] = counts[most] * bins > len(column)
    between = (values[1:] + values[:-1]) / 2
    around = between[is_atom[1:] | is_atom[:-1]]  # the edges next to atoms, at most two for each
    rest = values.repeat_interleave(counts * ~is_atom)
    number = bins - 2 * int(is_atom.sum())
    ranks = torch.arange(1, number) * len(rest) // number
    edges = torch.cat([around, rest[ranks]]).unique()
    edges = edges[(edges > values[0]) & (edges <= values[-1])]
    ends = torch.cat([values[:1], edges, values[-1:]])
    centres = (ends[1:] + ends[:-1]) / 2
    atoms = values[is_atom]
    centres[torch.bucketize(atoms, edges, right=True)] = atoms
    return edges, centres


def mu_law(column: Tensor, bins: int) -> Cut:
    """Cut all numbers by their size; of the column [n] only the dtype counts."""
    squashed = torch.linspace(-1, 1, bins + 1, dtype=column.dtype)

    def undo(y: Tensor) -> Tensor:
        return y.sign() * ((y.abs() * math.log1p(MU * LARGEST)).exp() - 1) / MU

    return undo(squashed[1:-1]), undo((squashed[1:] + squashed[:-1]) / 2)


KINDS: dict[str, Callable[[Tensor, int], Cut]] = {"uniform": uniform, "quantile": quantile, "mu-law": mu_law}


class ScalarTokens(nn.Module):
    """S columns cut into at most V bins each.

    Its numbers are parameters without a gradient: they travel, and are saved, with the weights.
    """

    def __init__(self, kind: str, columns: int, bins: int) -> None:
        """kind: of KINDS. Until `fit`, -1 to 1 is cut uniformly."""
        super().__init__()
        self.kind, self.bins = kind, bins
        start = torch.linspace(-1, 1, bins + 1)
        self.edges = nn.Parameter(start[1:-1].repeat(columns, 1), requires_grad=False)  # [S, V-1]
        self.centres = nn.Parameter((start[1:] + start[:-1]).repeat(columns, 1) / 2, requires_grad=False)  # [S, V]
        self.low = nn.Parameter(torch.full((columns,), -1.0), requires_grad=False)
        self.high = nn.Parameter(torch.ones(columns), requires_grad=False)

    @torch.no_grad()
    def fit(self, columns: list[Tensor]) -> None:
        """Cut anew: S columns of numbers, each [n]. ValueError if a number is not finite."""
        for i, column in enumerate(columns):
            if not column.isfinite().all():
                raise ValueError(f"column {i}: got {column[~column.isfinite()][0]} among its numbers, want finite ones")
            edges, centres = KINDS[self.kind](column.double(), self.bins)
            self.edges[i] = UNUSED
            self.edges[i, : len(edges)] = edges.float()
            self.centres[i] = centres[-1].float()
            self.centres[i, : len(centres)] = centres.float()
            self.low[i], self.high[i] = column.min(), column.max()

    def encode(self, numbers: Tensor, first: int | Tensor = 0) -> Tensor:
        """Find bins of numbers [.., n] of the columns first .. first+n-1: int64, same shape; beyond: the end bins.

        first: here and below also the columns themselves, int64 [n].
        """
        edges = self.edges[_columns(first, numbers)]  # [n, V-1]
        return (numbers.unsqueeze(-1) >= edges).sum(dim=-1)

    def decode(self, bins: Tensor, first: int | Tensor = 0) -> Tensor:
        """Return the numbers that bins [.., n] of the columns first .. first+n-1 stand for: float32, same shape."""
        centres = self.centres[_columns(first, bins)]  # [n, V]
        return centres.expand(*bins.shape, -1).gather(-1, bins.unsqueeze(-1)).squeeze(-1)

    def expectation(self, probabilities: Tensor, column: int) -> Tensor:
        """Return the mean of distributions over a column's bins: [.., V] -> [..]."""
        return probabilities @ self.centres[column].to(probabilities.dtype)

    def percentile(self, probabilities: Tensor, column: int, share: float) -> Tensor:
        """Return the number below which that share of each distribution lies: [.., V] -> [..]."""
        reached = probabilities.cumsum(dim=-1) >= share
        index = torch.where(reached.any(dim=-1), reached.int().argmax(dim=-1), probabilities.shape[-1] - 1)
        return self.centres[column][index]

    def clipped(self, numbers: Tensor, first: int | Tensor = 0) -> Tensor:
        """Say which numbers [.., n] lie beyond all that `fit` saw: bool, same shape."""
        columns = _columns(first, numbers)
        return (numbers < self.low[columns]) | (numbers > self.high[columns])


def _columns(first: int | Tensor, numbers: Tensor) -> slice | Tensor:
    """Index the columns of numbers [.., n]."""
    return slice(first, first + numbers.shape[-1]) if isinstance(first, int) else first
