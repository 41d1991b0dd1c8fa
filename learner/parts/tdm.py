"""Algorithm 1, lines 5-9: one gradient step of the TDM on one batch (Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from qttdm.common.models.tdm import TDM
from qttdm.common.tensors import Tensors, prefixed, under
from qttdm.learner.losses import dynamics_loss
from qttdm.learner.optimizer import AdamStep, OptimizerConfig


class TDMLearnerConfig(OptimizerConfig):
    """Paper, Table IV."""

    learning_rate: float = Field(default=1e-4, gt=0)
    max_grad_norm: float = Field(default=30.0, gt=0)
    state_weight: float = Field(default=1.0, gt=0)
    """beta_1"""
    reward_weight: float = Field(default=2.0, gt=0)
    """beta_2"""
    continuation_weight: float = Field(default=1.0, gt=0)


CACHE_BYTES = 4 * 2**20
"""what the widest activations of an update may take of a CPU's caches, for each thread"""


class TDMLearner:
    """Algorithm 1, lines 5-9."""

    name = "tdm"

    def __init__(self, config: TDMLearnerConfig, network: TDM, compile: bool = False) -> None:
        self.config, self.network = config, network
        self.optimizer = AdamStep(self.config, network)
        self.loss = torch.compile(self._loss) if compile else self._loss

    def _loss(self, batch: Tensors) -> Any:
        prediction = self.network(batch["observations"][:, :-1], batch["actions"])
        c = self.config
        return dynamics_loss(
            prediction,
            batch["observations"][:, 1:],
            batch["rewards"],
            batch["terminated"],
            batch["mask"],
            c.state_weight,
            c.reward_weight,
            c.continuation_weight,
        )

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """One step on a batch of windows; metrics stay on the device."""
        self.optimizer.clear()
        steps = batch["mask"].sum()
        terms = torch.zeros(3, device=steps.device)
        for part in self._parts(batch):
            share = part["mask"].sum() / steps  # each loss is a mean over its own steps
            loss = self.loss(part)
            (share * loss.total).backward()
            terms += share * torch.stack([loss.state, loss.reward, loss.continuation]).detach()
        norm = self.optimizer.step(progress)
        return dict(zip(("loss_state", "loss_reward", "loss_continuation"), terms, strict=True)) | {
            "grad_norm_tdm": norm
        }

    def _parts(self, batch: Tensors) -> Iterator[Tensors]:
        """The batch; on a CPU in parts whose activations stay in its caches. Their gradients are added up.

        What stands between the matrix products waits for memory otherwise (docs/results.md says what is gained).
        """
        count, length, action_dim = batch["actions"].shape
        parts = 1
        if batch["actions"].device.type == "cpu":
            widest = 4 * count * length * (action_dim + 1) * 4 * self.network.config.embed_dim  # bytes, inside the MLPs
            parts = min(count, math.ceil(widest / (torch.get_num_threads() * CACHE_BYTES)))
        for i in range(parts):
            rows = slice(i * count // parts, (i + 1) * count // parts)
            yield {name: tensor[rows] for name, tensor in batch.items()}

    def now(self) -> dict[str, Tensor]:
        """Nothing but what `update` returns."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Parameters and optimiser."""
        return prefixed("network", self.network.state_dict()) | prefixed("adam", self.optimizer.state())

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        self.network.load_state_dict(under("network", state))
        self.optimizer.load_state(under("adam", state))
