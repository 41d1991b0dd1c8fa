"""One gradient step of an MLP dynamics model, or of an ensemble: squared error, or a Gaussian's likelihood (PETS)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from qttdm.common.batch import Batch
from qttdm.common.metrics.lines import declare
from qttdm.common.models.mlp_dynamics import MLPDynamics
from qttdm.common.models.scale import BATCHES, rescale
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.losses import gaussian_nll
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.trained import TrainedPart

declare(
    (
        "loss_mlp_state",
        "1",
        "MLP dynamics model: squared error of what it predicts of the next state, in its standard deviation, mean over "
        "dimensions; in nats, without its constant, where it predicts a Gaussian",
    ),
    ("loss_mlp_reward", "1", "MLP dynamics model: squared error of the reward, in its own unit"),
    ("loss_mlp_continuation", "nats", "MLP dynamics model: cross-entropy of going on; 0 for a task that cannot end"),
    ("grad_norm_mlp", "1", "MLP dynamics model's gradient norm before clipping, all members together"),
    ("lr_mlp", "1", "learning rate of the MLP dynamics model"),
)


class MLPDynamicsLearnerConfig(OptimizerConfig):
    """One rate for all members; as published for PETS, gradients are not clipped."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam's, at the start"""
    max_grad_norm: float = Field(default=1e6, gt=0)
    """a gradient with a larger norm is scaled down to it"""


class MLPDynamicsLearner(TrainedPart):
    """Trains each member on its own share of the batch, whose windows are single transitions."""

    name = "mlp"

    def __init__(self, config: MLPDynamicsLearnerConfig, network: MLPDynamics, compile: bool = False) -> None:
        self.config, self.network = config, network
        self.optimizer = AdamStep(config, network)
        self.saved = {"network": network, "adam": self.optimizer}
        self.loss = torch.compile(self._loss) if compile else self._loss

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit the scales of what is observed and of what is predicted, and the bins of what is read, if any."""
        first = list(islice(batches, BATCHES))
        seen = torch.cat([torch.from_numpy(b["observations"]) for b in first])  # [.., 2, M]
        now, after = seen.unbind(dim=1)
        self.network.scale.fit_to(now)
        self.network.target_scale.fit_to(self.network.target(now, after))
        if self.network.tokens is not None:
            acted = torch.cat([torch.from_numpy(b["actions"]) for b in first]).squeeze(1)  # [.., N]
            self.network.tokens.fit([*now.unbind(dim=-1), *acted.unbind(dim=-1)])

    def _loss(self, batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Compute losses of state, reward and going on, means over members and their shares of B/members steps."""
        net = self.network

        def shared(x: Tensor) -> Tensor:
            return x.unflatten(0, (net.config.members, -1))

        now, after = shared(batch["observations"]).unbind(dim=2)  # [members, B/members, M]
        said = net(now, shared(batch["actions"]).squeeze(2))
        wanted = net.target_scale(net.target(now, after))
        state = gaussian_nll(said.targets, said.log_variance, wanted).mean()
        off = said.rewards - shared(batch["rewards"]).squeeze(2)
        reward = (off / net.reward_unit.size).square().mean()
        continuation = torch.zeros_like(state)
        if said.continuation_logits is not None:
            goes_on = (~shared(batch["terminated"]).squeeze(2)).to(off.dtype)
            continuation = F.binary_cross_entropy_with_logits(said.continuation_logits, goes_on)
        return state, reward, continuation

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step on a batch of transitions; metrics stay on the device."""
        self.optimizer.clear()
        net, (now, after) = self.network, batch["observations"].unbind(dim=1)
        net.scale.follow(now[:, None], batch["mask"])
        net.target_scale.follow(net.target(now, after)[:, None], batch["mask"])
        rewards = batch["rewards"]
        rescale(net.reward_head, net.reward_unit.follow((rewards, rewards != 0)))
        state, reward, continuation = self.loss(batch)
        total = state + reward + continuation
        (net.config.members * total).backward()  # each member learns as it would alone
        return {
            "loss_mlp_state": state.detach(),
            "loss_mlp_reward": reward.detach(),
            "loss_mlp_continuation": continuation.detach(),
            "grad_norm_mlp": self.optimizer.step(progress),
        }
