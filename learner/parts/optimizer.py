"""One network's optimiser: Adam, its learning-rate schedule, gradient clipping (paper, Table IV)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.config import Config


class OptimizerConfig(Config):
    """Adam and its schedule."""

    learning_rate: float = Field(gt=0)
    """Adam's, at the start"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """linear, cosine: decays to 0 at the end of the training"""
    weight_decay: float = Field(default=1e-6, ge=0)
    """Adam's: this times the parameter is added to its gradient"""
    max_grad_norm: float = Field(gt=0)
    """a gradient with a larger norm is scaled down to it"""


class AdamStep:
    """Adam with the paper's betas, a learning-rate schedule and gradient clipping, for one network."""

    def __init__(self, config: OptimizerConfig, network: nn.Module) -> None:
        self.config = config
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(
            self.parameters,
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-5,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def clear(self) -> None:
        """Clear all gradients: `backward` adds to them."""
        self.adam.zero_grad(set_to_none=True)

    def step(self, progress: float) -> Tensor:
        """Descend along the gradients there are; progress in [0, 1] is the share of training done.

        Returns their norm before clipping.
        """
        self.adam.param_groups[0]["lr"] = self.learning_rate(progress)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.adam.step()
        return norm

    def learning_rate(self, progress: float) -> float:
        """Return the schedule's rate at that share of training."""
        left = 1.0 - min(progress, 1.0)
        decay = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.config.schedule]
        return self.config.learning_rate * decay

    def state_dict(self) -> dict[str, Tensor]:
        """Return moments and step counts by parameter number; empty before the first step."""
        state = self.adam.state_dict()["state"]
        return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `state_dict`."""
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = value.clone()  # Adam keeps and changes what it is given
        self.adam.load_state_dict({"state": entries, "param_groups": self.adam.state_dict()["param_groups"]})
