"""Scale what goes into and comes out of a network, so that it does not depend on the task's units."""

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
RATE = 1e-3
"""of the running mean, once so many batches have been seen that their plain mean moves slower"""


class Unit(nn.Module):
    """The size of a head's outputs in the task's units: the running root mean square of what it is to predict.

    As in PopArt (van Hasselt et al., 2016) the head's last layer shrinks as the unit grows, so that what it predicts
    stays as it is. Its numbers are parameters without a gradient: they travel, and are saved, with the weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.ones(()), requires_grad=False)
        self.batches = nn.Parameter(torch.zeros(()), requires_grad=False)

    @torch.no_grad()
    def follow(self, *groups: tuple[Tensor, Tensor]) -> Tensor:
        """Move towards the size of what is to be predicted: numbers and where they count, of one shape.

        Of several groups the largest size; nothing but zeros changes nothing. Returns the factor by which the last
        layers change.
        """
        squares = [(x.square() * mask).sum() / mask.sum().clamp_min(1) for x, mask in groups]
        square = torch.stack(squares).amax()
        moves = square > 0
        self.batches.add_(moves)
        rate = (1.0 / self.batches.clamp_min(1.0)).clamp_min(RATE)
        size = torch.where(moves, torch.lerp(self.size.square(), square, rate).sqrt(), self.size)
        change = self.size / size
        self.size.copy_(size)
        return change


@torch.no_grad()
def rescale(head: nn.Sequential, by: Tensor) -> None:
    """Multiply a head's outputs."""
    for parameter in head[-1].parameters():
        parameter.mul_(by)


class ObservationScale(nn.Module):
    """Observations to mean 0 and standard deviation 1, and back; as they are until it has been fitted.

    Its numbers are parameters without a gradient: they travel, and are saved, with the weights.
    """

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(obs_dim), requires_grad=False)
        self.std = nn.Parameter(torch.ones(obs_dim), requires_grad=False)
        self.batches = nn.Parameter(torch.zeros(()), requires_grad=False)

    def fit(self, batches: Iterator[Batch]) -> None:
        """Take mean and standard deviation of the observations [M] in the next batches."""
        seen = [torch.from_numpy(b["observations"][:, :-1][b["mask"]]) for b in islice(batches, BATCHES)]  # [.., M]
        self.fit_to(torch.cat(seen))

    def fit_to(self, rows: Tensor) -> None:
        """Take mean and standard deviation of rows [.., M]; what does not move keeps a standard deviation of 1."""
        std, mean = torch.std_mean(rows, dim=0)
        size = rows.abs().amax(dim=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > STILL * size, std, 1.0))
        self.batches.fill_(BATCHES)

    @torch.no_grad()
    def follow(self, observations: Tensor, mask: Tensor) -> None:
        """Move towards mean and standard deviation of a batch, [B, L, M] where mask [B, L].

        A policy that learns goes where none was, and touches what lay still: by a scale of before, what it moves
        would be thousands of standard deviations off. What does not move in the batch keeps its standard deviation.
        """
        rate = (1.0 / (self.batches + 1.0)).clamp_min(RATE)
        weight = mask.to(observations.dtype).unsqueeze(-1) / mask.sum()
        mean = (observations * weight).sum(dim=(0, 1))
        square = ((observations - mean).square() * weight).sum(dim=(0, 1))
        # of what was and what comes, as one: their own spreads, and how far apart they are
        apart = rate * (1 - rate) * (mean - self.mean).square()
        variance = (1 - rate) * self.std.square() + rate * square + apart
        moves = square > (STILL * mean).square()
        self.mean.lerp_(mean, rate)
        self.std.copy_(torch.where(moves, variance.sqrt(), self.std))
        self.batches.add_(1.0)

    def forward(self, observations: Tensor) -> Tensor:
        """Scale: [.., M]."""
        return (observations - self.mean) / self.std

    def undo(self, scaled: Tensor) -> Tensor:
        """Return to the task's units: [.., M]."""
        return scaled * self.std + self.mean
