"""Numbers of any size as distributions over fixed bins that grow with them: two-hot targets (Hafner et al., 2023).

Bins lie evenly in symlog(x) = sign(x) log(1 + |x|). A number is given to the two bins beside it, so that the mean of
the bins is the number itself. A head of such a distribution fits rewards of 0.01 and of 10,000 alike, and can say that
a reward is 0 or 1 where a mean would say 0.5.

Choice: bins beyond all numbers met so far have no probability. Why: the outermost are in the millions, so that the
thousandth that an unsure head leaves them would be all that a mean or a draw is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEVER = -1e4
"""a logit of no probability; finite, since 0 times it must be 0"""


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Undo `symlog`."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """V bins from symexp(-limit) to symexp(limit), V odd: one is 0."""

    def __init__(self, bins: int, limit: float = 15.0) -> None:
        super().__init__()
        places = symexp(torch.linspace(-limit, limit, bins))
        places[bins // 2] = 0.0  # rounding must not make it less
        self.register_buffer("places", places, persistent=False)
        self.least = nn.Parameter(torch.zeros(()), requires_grad=False)  # they travel, and are saved, with the weights
        self.most = nn.Parameter(torch.zeros(()), requires_grad=False)

    places: Tensor

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Take numbers into the range of what has been met; call it before their loss."""
        self.least.copy_(torch.minimum(self.least, x.min()))
        self.most.copy_(torch.maximum(self.most, x.max()))

    def within(self, logits: Tensor) -> Tensor:
        """Leave no probability to bins beyond the two around the least and the most met: [.., V]."""
        first = torch.searchsorted(self.places, self.least, right=True) - 1
        last = torch.searchsorted(self.places, self.most)
        number = torch.arange(len(self.places), device=logits.device)
        return logits.float().masked_fill((number < first) | (number > last), NEVER)

    def encode(self, x: Tensor) -> Tensor:
        """Return the weights of the bins, [.., V]; numbers beyond the last bin count as it."""
        x = x.float().clamp(self.places[0], self.places[-1])
        upper = torch.searchsorted(self.places, x.contiguous()).clamp(1, len(self.places) - 1)
        low, high = self.places[upper - 1], self.places[upper]
        share = (x - low) / (high - low)
        out = x.new_zeros(*x.shape, len(self.places))
        out.scatter_(-1, (upper - 1).unsqueeze(-1), (1 - share).unsqueeze(-1))
        return out.scatter_(-1, upper.unsqueeze(-1), share.unsqueeze(-1))

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return the cross-entropy of numbers: logits [.., V], x [..] -> [..], nats."""
        return -(self.encode(x) * self.within(logits).log_softmax(dim=-1)).sum(dim=-1)

    def mean(self, logits: Tensor) -> Tensor:
        """Return the mean: [.., V] -> [..]."""
        # The halves alone are exact where they balance: sums of 1e6 and -1e6 would drown a mean of 0.
        p = self.within(logits).softmax(dim=-1) * self.places
        half = len(self.places) // 2
        return (p[..., half + 1 :] + p[..., :half].flip(-1)).sum(dim=-1)

    def draw(self, logits: Tensor, chance: Tensor) -> Tensor:
        """Draw a bin's number, given uniforms in [0, 1): [.., V], [..] -> [..]."""
        return self.places[draw(self.within(logits), chance)]


def draw(logits: Tensor, chance: Tensor) -> Tensor:
    """Draw classes by the inverse of their cumulated probabilities: logits [.., V], uniforms [..] -> int64 [..]."""
    below = logits.float().softmax(dim=-1).cumsum(dim=-1) <= chance.unsqueeze(-1)
    return below.sum(dim=-1).clamp_max(logits.shape[-1] - 1)
