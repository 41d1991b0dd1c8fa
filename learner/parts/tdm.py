"""Algorithm 1, lines 5-9: one gradient step of the TDM on one batch (Eq. 8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from qttdm.common.batch import Batch
from qttdm.common.metrics.lines import declare
from qttdm.common.models.scale import rescale
from qttdm.common.models.tdm import TDM
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.losses import dynamics_loss
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.trained import TrainedPart

declare(
    (
        "loss_state",
        "observation unit^2",
        "mean squared error per dimension of the next state, dynamics model; of 1 if normalised",
    ),
    (
        "loss_reward",
        "nats",
        "-log p(scaled reward) under Normal(prediction, 1), so at least 0.919; in its own unit if normalised",
    ),
    ("loss_continuation", "nats", "binary cross-entropy of going on; 0 for a task that cannot terminate"),
    ("grad_norm_tdm", "1", "dynamics model's gradient norm before clipping"),
    ("lr_tdm", "1", "learning rate of the dynamics model"),
)


class TDMLearnerConfig(OptimizerConfig):
    """Paper, Table IV."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's, at the start"""
    max_grad_norm: float = Field(default=30.0, gt=0)
    """a gradient with a larger norm is scaled down to it"""
    state_weight: float = Field(default=1.0, gt=0)
    """beta_1, of the state's loss"""
    reward_weight: float = Field(default=2.0, gt=0)
    """beta_2, of the reward's loss"""


class TDMLearner(TrainedPart):
    """Algorithm 1, lines 5-9."""

    name = "tdm"

    def __init__(self, config: TDMLearnerConfig, network: TDM, compile: bool = False) -> None:
        self.config, self.network = config, network
        self.optimizer = AdamStep(self.config, network)
        self.saved = {"network": network, "adam": self.optimizer}
        self.loss = torch.compile(self._loss) if compile else self._loss

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit the observations' scale, if there is one."""
        if (scale := self.network.state_embedding.scale) is not None:
            scale.fit(batches)

    def _loss(self, batch: Tensors) -> Any:
        prediction = self.network(batch["observations"][:, :-1], batch["actions"])
        c, scale, reward_unit = self.config, self.network.state_embedding.scale, self.network.reward_unit
        return dynamics_loss(
            prediction,
            batch["observations"][:, 1:],
            batch["rewards"],
            batch["terminated"],
            batch["mask"],
            c.state_weight,
            c.reward_weight,
            None if scale is None else scale.std,
            None if reward_unit is None else reward_unit.size,
        )

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step on a batch of windows; metrics stay on the device."""
        self.optimizer.clear()
        if (scale := self.network.state_embedding.scale) is not None:
            scale.follow(batch["observations"][:, :-1], batch["mask"])
        if (unit := self.network.reward_unit) is not None:
            rewards = batch["rewards"]
            rescale(self.network.reward_head, unit.follow((rewards, batch["mask"] & (rewards != 0))))
        loss = self.loss(batch)
        loss.total.backward()
        norm = self.optimizer.step(progress)
        return {
            "loss_state": loss.state.detach(),
            "loss_reward": loss.reward.detach(),
            "loss_continuation": loss.continuation.detach(),
            "grad_norm_tdm": norm,
        }
