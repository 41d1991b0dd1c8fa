"""Dropout whose mask costs one random byte per element.

On a CPU, torch's own dropout draws one number per element from a serial generator; in a training step of the paper's
size that costs as much as the matrix products. Here 64 random bits give eight masks. The probability is rounded to
the nearest 1/256 (0.1 becomes 26/256) and the scale uses the rounded one, so the expectation is exact.
Elsewhere torch's own fused kernel is the faster one and is used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ApplyMask(torch.autograd.Function):
    """x * keep * scale, keeping one byte per element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return apply_mask(x, keep, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return apply_mask(gradient, keep, ctx.scale), None, None


def apply_mask(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """Compute x * keep * scale, for bytes keep of 0 or 1. A product of x with bytes or booleans takes far longer."""
    return keep.to(x.dtype).mul_(x).mul_(scale)  # in this order: the scale alone would be rounded to bfloat16


class Dropout(nn.Module):
    """Drop-in for nn.Dropout: x of any shape -> same shape. Draws from torch's global generator."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.threshold = min(round(probability * 256), 255)  # at 256 nothing would be left to scale up

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape)
        keep.clamp_(self.threshold - 1, self.threshold).sub_(self.threshold - 1)  # comparing is slower, clamping is not
        return _ApplyMask.apply(x, keep, 256 / (256 - self.threshold))

    def extra_repr(self) -> str:
        return f"p={self.probability}"
