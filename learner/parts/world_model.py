"""One gradient step of a transformer world model: observation model and dynamics (Robine et al., 2023).

    encoder, decoder   reconstruction + entropy hinge + consistency with what the dynamics expected
    dynamics           cross-entropy of the next latent's distribution, reward, discount

The dynamics send no gradient to the encoder: latents are made to be decoded, and only slightly to be predicted.
Windows end with their episode (replay pads them), so nothing attends across an episode's end.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.metrics.lines import declare
from qttdm.common.models.latent import Decoder, Encoder, straight_through
from qttdm.common.models.world_model import Dynamics, Seen
from qttdm.common.tensors import Tensors
from qttdm.learner.parts.losses import masked_mean
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.trained import TrainedPart

declare(
    ("loss_reconstruction", "nats", "world model: half the squared error of an observation, summed over its numbers"),
    ("loss_latents", "nats", "world model: cross-entropy of the next latent, summed over its variables"),
    ("loss_emitted_reward", "nats", "world model: cross-entropy of the reward's bins"),
    ("loss_discount", "nats", "world model: binary cross-entropy of the discount"),
    ("latent_entropy", "fraction", "world model: entropy of latents, of the largest there can be"),
    ("latent_surprise", "nats", "world model: cross-entropy of latents under what the dynamics expected"),
    ("grad_norm_latent", "1", "world model: gradient norm of encoder and decoder before clipping"),
    ("grad_norm_dynamics", "1", "world model: gradient norm of the dynamics before clipping"),
    ("lr_world_model", "1", "world model: learning rate of the dynamics"),
)


class WorldModelOptimizerConfig(OptimizerConfig):
    """Adam as published."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's, at the start"""
    max_grad_norm: float = Field(default=100.0, gt=0)
    """a gradient with a larger norm is scaled down to it"""


class WorldModelLearnerConfig(Config):
    """Weights of the losses; defaults are the published ones."""

    observation_model: WorldModelOptimizerConfig = WorldModelOptimizerConfig()
    """optimiser of encoder and decoder"""
    dynamics: WorldModelOptimizerConfig = WorldModelOptimizerConfig()
    """optimiser of the dynamics"""
    vector_std: float = Field(default=0.1, gt=0)
    """standard deviation of the Normal around a decoded vector, of normalised numbers; of pixels it is 1, as published:
    there the many of an image make up for it"""
    entropy_weight: float = Field(default=5.0, ge=0)
    """of the entropy that a batch's latents lack"""
    entropy_threshold: float = Field(default=0.1, ge=0, le=1)
    """share of the largest entropy that latents are to keep"""
    consistency_weight: float = Field(default=0.01, ge=0)
    """of latents as the dynamics expected them, in the encoder's loss"""
    reward_weight: float = Field(default=10.0, ge=0)
    """of the reward in the dynamics' loss"""
    discount_weight: float = Field(default=50.0, ge=0)
    """of the discount in the dynamics' loss"""


class WorldModelLearner(TrainedPart):
    """Encoder, decoder and dynamics; acting needs the encoder alone, which is the part's network.

    Nothing is fitted beforehand: the scale of vectors follows what is seen.
    """

    name = "world_model"

    def __init__(self, config: WorldModelLearnerConfig, encoder: Encoder, decoder: Decoder, dynamics: Dynamics) -> None:
        self.config, self.network, self.decoder, self.dynamics = config, encoder, decoder, dynamics
        self.observation_optimizer = AdamStep(config.observation_model, nn.ModuleList([encoder, decoder]))
        self.optimizer = AdamStep(config.dynamics, dynamics)
        self.saved = {
            "network": encoder,
            "decoder": decoder,
            "dynamics": dynamics,
            "adam": self.optimizer,
            "adam_observations": self.observation_optimizer,
        }
        self.seen: Seen | None = None
        """the newest batch, for parts that imagine from it"""

    def loss(self, batch: Tensors) -> tuple[Tensor, dict[str, Tensor], Seen]:
        """Compute the sum of both losses, whose gradients are apart, the numbers to report, and what was seen."""
        c, dynamics, latent = self.config, self.dynamics, self.network.config
        observations, mask, terminated = batch["observations"], batch["mask"], batch["terminated"]
        exists = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)  # [B, L+1]
        logits = self.network(observations)  # [B, L+1, G, C]
        drawn = straight_through(logits, torch.rand(logits.shape[:-1], device=logits.device)).flatten(-2)
        std = 1.0 if self.network.scale is None else c.vector_std
        error = (self.decoder(drawn) - self._wanted(observations)) / std
        reconstruction = masked_mean(0.5 * error.flatten(2).square().sum(dim=-1), exists)
        log_p = logits.float().log_softmax(dim=-1)
        entropy = masked_mean(-(log_p.exp() * log_p).sum(dim=(-1, -2)), exists)
        entropy = entropy / (latent.variables * math.log(latent.classes))
        latents = drawn.detach()
        outcome, cache = dynamics(latents[:, :-1], batch["actions"], batch["rewards"])
        goes_on = mask & ~terminated
        expected = outcome.latents.float().log_softmax(dim=-1)  # [B, L, G, C]
        surprise = masked_mean(-(expected.detach().exp() * log_p[:, 1:]).sum(dim=(-1, -2)), goes_on)
        prediction = masked_mean(-(log_p[:, 1:].detach().exp() * expected).sum(dim=(-1, -2)), goes_on)
        dynamics.reward_bins.follow(batch["rewards"])
        reward = masked_mean(dynamics.reward_bins.loss(outcome.rewards, batch["rewards"]), mask)
        target = dynamics.discount * (~terminated).float()
        ending = F.binary_cross_entropy_with_logits(outcome.discounts.float(), target, reduction="none")
        discount = masked_mean(ending, mask) if dynamics.terminates else torch.zeros_like(reward)
        total = (
            reconstruction
            + c.entropy_weight * (c.entropy_threshold - entropy).clamp_min(0)
            + c.consistency_weight * surprise
            + prediction
            + c.reward_weight * reward
            + c.discount_weight * discount
        )
        metrics = {
            "loss_reconstruction": reconstruction,
            "loss_latents": prediction,
            "loss_emitted_reward": reward,
            "loss_discount": discount,
            "latent_entropy": entropy,
            "latent_surprise": surprise,
        }
        alive = torch.cat([torch.ones_like(mask[:, :1]), goes_on], dim=1)
        seen = Seen(latents, batch["rewards"], alive, cache)
        return total, {name: value.detach() for name, value in metrics.items()}, seen

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Take one step on a batch of windows; metrics stay on the device."""
        self.observation_optimizer.clear()
        self.optimizer.clear()
        if self.network.scale is not None:
            self.network.scale.follow(batch["observations"][:, :-1], batch["mask"])
        loss, metrics, self.seen = self.loss(batch)
        loss.backward()
        norms = {
            "grad_norm_latent": self.observation_optimizer.step(progress),
            "grad_norm_dynamics": self.optimizer.step(progress),
        }
        return metrics | norms

    def _wanted(self, observations: Tensor) -> Tensor:
        """Return what the decoder is to give: pixels in [0, 1], or normalised vectors."""
        scale = self.network.scale
        return observations.float() / 255.0 if scale is None else scale(observations)
