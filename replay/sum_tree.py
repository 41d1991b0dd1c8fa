"""A sum-tree: draws an index with probability proportional to its weight, weights changing all the time.

A binary tree in one array: node i has children 2i and 2i+1, the leaves are the second half, every inner node is the sum
of its two children. A change recomputes the sums above it instead of adding differences to them, so rounding errors
never pile up and the tree is a function of its leaves alone: saving the weights saves the tree, bit for bit.
"""

from __future__ import annotations

import numpy as np


class SumTree:
    """Weights of `size` entries, all 0 at first. Every operation is vectorised over n entries."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._leaves = 1 << max(size - 1, 1).bit_length()
        self._nodes = np.zeros(2 * self._leaves)

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._nodes[1])

    @property
    def weights(self) -> np.ndarray:
        """float64 [size], a view to read from."""
        return self._nodes[self._leaves : self._leaves + self.size]

    def set(self, indices: np.ndarray, weights: np.ndarray | float) -> None:
        """Give int [n] entries the float64 [n] weights (>= 0); O(n log size). An entry named twice needs one weight."""
        nodes, level = indices + self._leaves, self._leaves
        self._nodes[nodes] = weights
        while level > self._narrow(len(nodes)):
            nodes, level = nodes >> 1, level // 2
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]
        self._sum_up(level)

    def fill(self, weights: np.ndarray) -> None:
        """Give all entries their float64 [size] weights; O(size), cheaper than `set` for many."""
        self.weights[:] = weights
        self._sum_up(self._leaves)

    def find(self, masses: np.ndarray) -> np.ndarray:
        """Find the entries that cover float64 [n] points of [0, total) when laid side by side -> int64 [n].

        Needs total > 0. Never finds an entry of weight 0, though rounding can push a point past the last other one.
        """
        level = self._narrow(len(masses))
        sums = np.cumsum(self._nodes[level : 2 * level])
        last = np.searchsorted(sums, sums[-1])  # of weight > 0
        nodes = np.minimum(np.searchsorted(sums, masses, side="right"), last)
        masses = masses - np.where(nodes > 0, sums[nodes - 1], 0.0)
        nodes += level
        while level < self._leaves:
            nodes, level = 2 * nodes, 2 * level
            left = self._nodes[nodes]
            right = (masses >= left) & (self._nodes[nodes + 1] > 0)
            masses -= np.where(right, left, 0.0)
            nodes += right
        return nodes - self._leaves

    def _narrow(self, n: int) -> int:
        """Number of nodes of the lowest level that is cheaper to compute as a whole than at n of its nodes."""
        return min(self._leaves, 1 << (8 * n - 1).bit_length())

    def _sum_up(self, level: int) -> None:
        """Recompute all levels above the one of `level` nodes."""
        while level > 1:
            below = self._nodes[level : 2 * level]
            level //= 2
            self._nodes[level : 2 * level] = below[0::2] + below[1::2]
