"""Scale observations by those seen before the first update, so that a network does not depend on the task's units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from qttdm.common.batch import Batch

BATCHES = 16
"""to take mean and standard deviation of"""
STILL = 1e-5
"""An observation with a standard deviation below this share of its size has not moved, and is not divided."""


class ObservationScale(nn.Module):
    """Observations to mean 0 and standard deviation 1, and back; as they are until it has been fitted.

    Its numbers are parameters without a gradient: they travel, and are saved, with the weights.
    """

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(obs_dim), requires_grad=False)
        self.std = nn.Parameter(torch.ones(obs_dim), requires_grad=False)

    def fit(self, batches: Iterator[Batch]) -> None:
        """Take mean and standard deviation of the observations [M] in the next batches."""
        seen = [torch.from_numpy(b["observations"][:, :-1][b["mask"]]) for b in islice(batches, BATCHES)]  # [.., M]
        std, mean = torch.std_mean(torch.cat(seen), dim=0)
        size = torch.cat(seen).abs().amax(dim=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > STILL * size, std, 1.0))

    def forward(self, observations: Tensor) -> Tensor:
        """Scale: [.., M]."""
        return (observations - self.mean) / self.std

    def undo(self, scaled: Tensor) -> Tensor:
        """Return to the task's units: [.., M]."""
        return scaled * self.std + self.mean
