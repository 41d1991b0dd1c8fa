"""Algorithm 1, lines 10-14: one gradient step of the QT on one batch, and its target network (Eq. 2, 9)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from qttdm.common.batch import Batch
from qttdm.common.metrics.lines import declare
from qttdm.common.models.qt import QT
from qttdm.common.models.scale import Unit, rescale
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.losses import masked_mean, q_loss
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.targets import bellman_targets, n_step_returns
from qttdm.learner.parts.trained import TrainedPart, follow

declare(
    ("loss_q", "1", "smooth L1 to the targets, mean over action dimensions and the two heads"),
    ("grad_norm_qt", "1", "Q-Transformer's gradient norm before clipping"),
    ("lr_qt", "1", "learning rate of the Q-Transformer"),
    ("q_mean", "scaled return", "Q of the bins taken, mean over action dimensions and heads"),
    ("q_target_mean", "scaled return", "its targets: discounted sums of rewards times learner.reward_scale"),
    ("q_max", "scaled return", "largest Q of a batch, of the bins taken, mean over heads"),
    ("replayed_return", "scaled return", "return of the same states in the stored episodes, discounted, to the end"),
    ("target_drift", "fraction", "distance of the target network from the network, over the network's norm"),
)


class QTLearnerConfig(OptimizerConfig):
    """Paper, Table IV."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Adam's, at the start"""
    max_grad_norm: float = Field(default=20.0, gt=0)
    """a gradient with a larger norm is scaled down to it"""
    n_step: int = Field(default=3, gt=0)
    """rewards summed before the target network's value"""
    states_per_window: int = Field(default=1, gt=0)
    """leading steps of each window that are training states; the paper uses the first"""
    ema_coefficient: float = Field(default=0.005, gt=0, le=1)
    """zeta: how far the target moves towards the network"""
    ema_every: int = Field(default=5, gt=0)
    """updates between two such moves"""
    monte_carlo_clamp: bool = False
    """bound targets from below by the return-to-go; for sparse rewards, none of them negative: what a time limit cuts
    off must not have been worse than nothing"""
    taken_clamp: bool = False
    """bound targets of all dimensions but the last from below by the last one's: the best action is worth at least the
    one taken; else, as in the paper, values take as many moves of the target network as there are dimensions"""


class QTLearner(TrainedPart):
    """Algorithm 1, lines 10-14. The target network is always in eval mode: targets carry no dropout noise."""

    name = "qt"

    def __init__(self, config: QTLearnerConfig, network: QT, discount: float, compile: bool = False) -> None:
        self.config, self.network, self.discount = config, network, discount
        self.target = copy.deepcopy(network).eval().requires_grad_(False)
        self.target.scale = network.scale  # one for both: they read the same observations
        self.optimizer = AdamStep(self.config, network)
        self.saved = {"network": network, "target": self.target, "adam": self.optimizer}
        self.updates = 0
        self.loss = torch.compile(self._loss) if compile else self._loss

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit the scales of observations and values, if there are any; the target network has the same."""
        if self.network.scale is not None:
            self.network.scale.fit(batches)
        if (unit := self.network.value_unit) is not None:
            batch = {name: torch.from_numpy(array).to(unit.size.device) for name, array in next(batches).items()}
            with torch.no_grad():
                self._keep_unit(unit, self._loss(batch)[1], batch)

    def _loss(self, batch: Tensors) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the loss, the targets [B * S, N], and the other metrics of the batch."""
        c, s = self.config, self.config.states_per_window
        returns, weight, index = n_step_returns(
            batch["rewards"], batch["mask"], batch["terminated"], s, c.n_step, self.discount
        )  # each [B, S]
        observations = batch["observations"][:, :s].flatten(0, 1)  # [B * S, M]
        later = batch["observations"].take_along_dim(index.unsqueeze(-1), dim=1).flatten(0, 1)  # [B * S, M]
        actions = batch["actions"][:, :s].flatten(0, 1)  # [B * S, N]
        taken_before = actions[:, :-1]  # [B * S, N-1]
        with torch.no_grad():
            if taken_before.shape[1] > 0:
                next_dimension_q = self.target(observations, taken_before)[:, :, 1:]
            else:  # one dimension: there is no next one
                next_dimension_q = observations.new_empty(2, len(actions), 0, self.network.config.bins)
            targets = bellman_targets(
                next_dimension_q,
                self.target(later, actions[:, :0])[:, :, 0],
                returns.flatten(),
                weight.flatten(),
                batch["returns_to_go"][:, :s].flatten() if c.monte_carlo_clamp else None,
                c.taken_clamp,
            )
        taken = self.network.tokenizer.read(self.network(observations, taken_before), actions)  # [2, B * S, N]
        mask = batch["mask"][:, :s].flatten()
        unit = self.network.value_unit
        loss = q_loss(taken, targets, mask) if unit is None else q_loss(taken / unit.size, targets / unit.size, mask)
        taken = taken.detach().mean(dim=0)  # [B * S, N]
        metrics = {
            "q_mean": masked_mean(taken.mean(dim=1), mask),
            "q_max": taken.masked_fill(~mask.unsqueeze(1), -torch.inf).max(),
            "q_target_mean": masked_mean(targets.mean(dim=1), mask),
            "replayed_return": masked_mean(batch["returns_to_go"][:, :s].flatten(), mask),
        }
        return loss, targets, metrics

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step on the leading states of a batch of windows; metrics stay on the device."""
        self.optimizer.clear()
        if self.network.scale is not None:
            self.network.scale.follow(batch["observations"][:, :-1], batch["mask"])
        loss, targets, values = self.loss(batch)
        loss.backward()
        norm = self.optimizer.step(progress)
        if self.network.value_unit is not None:
            self._keep_unit(self.network.value_unit, targets, batch)
        self.updates += 1
        if self.updates % self.config.ema_every == 0:
            follow(self.target, self.network, self.config.ema_coefficient)  # line 14
        return {"loss_q": loss.detach(), "grad_norm_qt": norm, **values}

    def _keep_unit(self, unit: Unit, targets: Tensor, batch: Tensors) -> None:
        """Move the unit of values towards the size of the targets [B * S, N]; the target network has the same.

        It is not below a reward's: where rewards are rare, values differ by less than that for a long time, and what
        is noise in them by then lets the planner explore.
        """
        rewards, mask = batch["rewards"], batch["mask"]
        states = mask[:, : self.config.states_per_window].reshape(-1, 1).expand_as(targets)
        change = unit.follow((targets, states), (rewards, mask & (rewards != 0)))
        for head in (*self.network.heads, *self.target.heads):
            rescale(head, change)
        if self.target.value_unit is not None:
            self.target.value_unit.size.copy_(unit.size)

    def now(self) -> dict[str, Tensor]:
        """Return `target_drift`, a scalar on the device."""
        return {"target_drift": self.drift()}

    @torch.no_grad()
    def drift(self) -> Tensor:
        """Return distance of the target from the network, over the network's norm: a scalar on the device."""
        both = zip(self.network.parameters(), self.target.parameters(), strict=True)
        pairs = [(own, slow) for own, slow in both if own.requires_grad]  # no scale of observations
        parameters: list[Tensor] = [own for own, _ in pairs]
        target: list[Tensor] = [slow for _, slow in pairs]
        apart = torch._foreach_sub(parameters, target)
        distance, norm = (torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (apart, parameters))
        return distance / norm

    def state(self) -> dict[str, Tensor]:
        """Return what is saved, and the count that paces the target."""
        return super().state() | {"updates": torch.tensor(self.updates)}

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        super().load_state(state)
        self.updates = int(state["updates"])
