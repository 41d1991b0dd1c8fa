"""One gradient step of the sequence model: cross-entropy of every next token and of what is read at a step's end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from qttdm.common.batch import Batch
from qttdm.common.metrics.lines import declare
from qttdm.common.models.sequence_model import SequenceModel
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.losses import masked_mean
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.trained import TrainedPart

declare(
    ("loss_observation_tokens", "nats", "cross-entropy of an observation's token, sequence model"),
    ("loss_action_tokens", "nats", "cross-entropy of an action's token"),
    ("loss_reward_token", "nats", "cross-entropy of a step's reward"),
    ("loss_value_token", "nats", "cross-entropy of the return after a step"),
    ("loss_going_on", "nats", "binary cross-entropy of going on; 0 for a task that cannot terminate"),
    ("clipped_share", "fraction", "numbers in a batch beyond all that the bins were fitted to"),
    ("grad_norm_sequence", "1", "sequence model's gradient norm before clipping"),
    ("lr_sequence", "1", "learning rate of the sequence model"),
)

FITTED_STEPS = 100_000
"""steps that bins are fitted to"""


class SequenceLearnerConfig(OptimizerConfig):
    """Weights as published; one rate that need not decay."""

    learning_rate: float = Field(default=6e-4, gt=0)
    """Adam's, at the start"""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """a gradient with a larger norm is scaled down to it"""
    observation_weight: float = Field(default=1.0, ge=0)
    """of an observation token's loss"""
    action_weight: float = Field(default=5.0, ge=0)
    """of an action token's"""
    reward_weight: float = Field(default=1.0, ge=0)
    """of a reward's"""
    value_weight: float = Field(default=1.0, ge=0)
    """of a return's"""
    cut_value: float = Field(default=0.5, gt=0, le=1)
    """the return after a step counts as unknown if a time limit cuts off more than this share of its weight: if
    discount^(decisions left) is larger; the episode would have gone on"""
    goal_share: float = Field(default=0.5, ge=0, le=1)
    """batches of which the episode's last observation is given in front, where the model has goals"""


class Targets(NamedTuple):
    """What a batch of windows is to be predicted as, and where it counts."""

    bins: Tensor
    """inputs and the observation after them, int64 [B, L K + M]"""
    exists: Tensor
    """bool, same shape: behind an episode's end there is nothing"""
    outputs: dict[str, tuple[Tensor, Tensor]]
    """of each: bins int64 [B, L], and where they are known"""
    clipped: Tensor
    """share of numbers beyond the bins, a scalar"""


class SequenceLearner(TrainedPart):
    """Predicts every next token of windows that start anywhere."""

    name = "sequence"

    def __init__(self, config: SequenceLearnerConfig, network: SequenceModel, discount: float) -> None:
        self.config, self.network, self.discount = config, network, discount
        self.optimizer = AdamStep(config, network)
        self.saved = {"network": network, "adam": self.optimizer}

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit bins to as many batches as make FITTED_STEPS steps, once each."""
        layout, shared, steps = self.network.layout, self.network.config.shared, 0
        seen: dict[str, list[Tensor]] = {name: [] for name in (*layout.inputs, *layout.outputs)}
        for batch in batches:
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            mask = tensors["mask"]
            rows = {
                "rewards": tensors["rewards"][mask].unsqueeze(-1),
                "observations": tensors["observations"][:, :-1][mask],
                "actions": tensors["actions"][mask],
                "separator": torch.zeros(1, 1),
            }
            if "values" in layout.outputs:
                rows["values"] = self.values(tensors)[self.values_known(tensors)].unsqueeze(-1)
            for name, numbers in seen.items():
                numbers.append(rows[name].reshape(-1, 1) if shared else rows[name])
            steps += mask.numel()
            if steps >= FITTED_STEPS:
                break
        columns = [column for numbers in seen.values() for column in torch.cat(numbers).unbind(dim=-1)]
        self.network.tokens.fit([column if len(column) else torch.zeros(1) for column in columns])

    def values(self, batch: Tensors) -> Tensor:
        """Compute the return after each step, discounted to the next: [B, L]."""
        return (batch["returns_to_go"] - batch["rewards"]) / self.discount

    def values_known(self, batch: Tensors) -> Tensor:
        """Say of which steps the return is known: bool [B, L]."""
        left = batch["left"][:, None] - torch.arange(batch["mask"].shape[1], device=batch["mask"].device)
        cut = torch.exp(left.float() * math.log(self.discount)) > self.config.cut_value
        return batch["mask"] & (batch["ends"][:, None] | ~cut)

    def targets(self, batch: Tensors) -> Targets:
        """Encode a batch of windows; where rewards are inputs it has one step more, in front, for the first reward."""
        model, mask, seen = self.network, batch["mask"], batch["observations"]
        numbers = {"actions": batch["actions"]}
        observed = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)  # [B, L+1], of observations
        if model.layout.imagines_rewards:
            lengths = {"observations": seen.shape[-1], "actions": batch["actions"].shape[-1]}
            layout = replace(model.layout, inputs={**model.layout.inputs, **lengths})
            if layout != model.layout:
                model.use(layout)
            rewards = batch["rewards"][:, :-1].unsqueeze(-1)
            numbers = {"actions": batch["actions"][:, 1:], "rewards": rewards, "separator": torch.zeros_like(rewards)}
            mask, seen, observed = mask[:, 1:], seen[:, 1:], observed[:, 1:]
        layout, tokens = model.layout, model.tokens
        numbers["observations"] = seen[:, :-1]
        inputs = torch.cat([numbers[name] for name in layout.inputs], dim=-1)  # [B, L, K]
        last = tokens.encode(seen[:, -1], model.columns_of("observations"))
        bins = torch.cat([tokens.encode(inputs, model.columns).flatten(1), last], dim=1)
        came_with = dict.fromkeys(("observations", "rewards"), observed[:, :-1])
        there = [came_with.get(name, mask).unsqueeze(-1).expand(-1, -1, n) for name, n in layout.inputs.items()]
        exists = torch.cat([torch.cat(there, dim=-1).flatten(1), observed[:, -1:].expand(-1, model.obs_dim)], dim=1)
        known = {"rewards": (batch["rewards"], mask)}
        if "values" in layout.outputs:
            known["values"] = (self.values(batch), self.values_known(batch))
        outputs = {
            name: (tokens.encode(known[name][0].unsqueeze(-1), model.column(name)).squeeze(-1), known[name][1])
            for name in layout.outputs
        }
        clipped = tokens.clipped(inputs, model.columns).float().mean(dim=-1)
        return Targets(bins, exists, outputs, masked_mean(clipped, mask))

    def loss(self, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted mean over all tokens, and the parts' own means."""
        c, model = self.config, self.network
        targets = self.targets(batch)
        goals = None
        if model.goal_embedding is not None and float(torch.rand(())) < c.goal_share:
            goals = model.tokens.encode(batch["last_observations"])
        logits, outcome = model(targets.bins, goals)
        wanted, exists = targets.bins[:, 1:], targets.exists[:, 1:]
        nats = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        slot = torch.arange(1, 1 + wanted.shape[1], device=wanted.device) % model.layout.slots
        of_input = {
            "observations": ("loss_observation_tokens", c.observation_weight),
            "rewards": ("loss_reward_token", c.reward_weight),
            "actions": ("loss_action_tokens", c.action_weight),
        }
        total, count = nats.new_zeros(()), exists.sum()
        metrics = {}
        for input_name in model.layout.inputs.keys() & of_input.keys():  # the separator says nothing
            name, weight = of_input[input_name]
            first = model.layout.first(input_name)
            where = exists & (slot >= first) & (slot < first + model.layout.inputs[input_name])
            summed = (nats * where).sum()
            total = total + weight * summed
            metrics[name] = summed / where.sum().clamp_min(1)
        of_output = {"rewards": ("loss_reward_token", c.reward_weight), "values": ("loss_value_token", c.value_weight)}
        for output, (bins, where) in targets.outputs.items():
            name, weight = of_output[output]
            of_step = F.cross_entropy(outcome.logits[output].float().flatten(0, 1), bins.flatten(), reduction="none")
            summed = (of_step.view_as(where) * where).sum()
            total, count = total + weight * summed, count + where.sum()
            metrics[name] = summed / where.sum().clamp_min(1)
        loss = total / count
        metrics["loss_going_on"] = torch.zeros_like(loss)
        if (goes_on := outcome.continuation_logits) is not None:
            steps = slice(1 if model.layout.imagines_rewards else 0, None)
            want = (~batch["terminated"][:, steps]).to(goes_on.dtype)
            cross = F.binary_cross_entropy_with_logits(goes_on, want, reduction="none")
            metrics["loss_going_on"] = masked_mean(cross, batch["mask"][:, steps])
            loss = loss + metrics["loss_going_on"]
        metrics["clipped_share"] = targets.clipped
        return loss, {name: value.detach() for name, value in metrics.items()}

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step on a batch of windows; metrics stay on the device."""
        self.optimizer.clear()
        loss, metrics = self.loss(batch)
        loss.backward()
        return metrics | {"grad_norm_sequence": self.optimizer.step(progress)}
