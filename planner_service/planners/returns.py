"""Score imagined sequences: the running sum of Eq. 10, shared by all planners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Returns:
    """The running sum of Eq. 10 along imagined sequences."""

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.total = torch.zeros(())
        self.weight = torch.ones(())  # gamma^k times the probability that the episode lasts until step k

    def add(self, rewards: Tensor, continuation_logits: Tensor | None) -> None:
        """Add one step: rewards [B], log-odds [B] that the episode goes on after it."""
        self.total = self.total + self.weight * rewards
        self.weight = self.weight * self.discount
        if continuation_logits is not None:
            self.weight = self.weight * torch.sigmoid(continuation_logits)

    def take(self, index: Tensor) -> None:
        """Go on with other sequences, by number: int64 [B]; some may be there more than once."""
        self.total = self.total[index]
        if self.weight.ndim:  # a number while no episode can end
            self.weight = self.weight[index]


def without_goal(goal: Any) -> None:
    """Raise ValueError if an episode is given a goal: this planner looks for return."""
    if goal is not None:
        raise ValueError("goal: got one, and this planner looks for return; want a beam search in a model with goals")


def repeated(environments: int, copies: int, device: torch.device) -> Tensor:
    """Number each root `copies` times in a row: int64 [E * copies]."""
    return torch.arange(environments, device=device).repeat_interleave(copies, output_size=environments * copies)
