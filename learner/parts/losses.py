"""The losses: TDM's (paper, Eq. 8), QT's (Eq. 9), each a mean over the steps that exist; IQL's and a Gaussian's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qttdm.common.models.tdm import Prediction

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class DynamicsLoss:
    """Compute Eq. 8 and its terms, scalars."""

    total: Tensor
    state: Tensor
    """mean squared error per state dimension"""
    reward: Tensor
    """negative log-likelihood under a unit-variance Normal, nats"""
    continuation: Tensor
    """binary cross-entropy, nats; 0 for tasks that cannot terminate"""


def dynamics_loss(
    prediction: Prediction,
    next_observations: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    mask: Tensor,
    state_weight: float,
    reward_weight: float,
    unit: Tensor | None = None,
    reward_unit: Tensor | None = None,
) -> DynamicsLoss:
    """Compute Eq. 8: beta_1 * squared state error - beta_2 * ln p(reward), and the cross-entropy of going on.

    prediction [B, L, ..], next_observations [B, L, M], rewards [B, L], terminated and mask bool [B, L].
    unit: of each dimension's error, [M]; reward_unit: of the reward's, a scalar; None: 1.
    """
    error = prediction.observations - next_observations
    if unit is not None:
        error = error / unit
    state = masked_mean(error.square().mean(dim=-1), mask)
    off = prediction.rewards - rewards
    if reward_unit is not None:
        off = off / reward_unit
    reward = masked_mean(0.5 * off.square(), mask) + HALF_LOG_TWO_PI
    total = state_weight * state + reward_weight * reward
    continuation = torch.zeros_like(state)
    if prediction.continuation_logits is not None:
        goes_on = (~terminated).to(rewards.dtype)
        logits = prediction.continuation_logits
        continuation = masked_mean(F.binary_cross_entropy_with_logits(logits, goes_on, reduction="none"), mask)
        total = total + continuation
    return DynamicsLoss(total, state, reward, continuation)


def gaussian_nll(mean: Tensor, log_variance: Tensor | None, target: Tensor) -> Tensor:
    """Compute -ln N(target; mean, variance) without its constant, all [.., M]; None: the squared error instead."""
    square = (target - mean).square()
    return square if log_variance is None else 0.5 * (square * (-log_variance).exp() + log_variance)


def q_loss(taken: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Compute Eq. 9 as smooth L1 on the Q of the actions taken, both heads towards the same targets.

    taken [2, B, N], targets [B, N], mask bool [B] -> mean over steps, dimensions and heads.
    """
    error = F.smooth_l1_loss(taken, targets.expand_as(taken), reduction="none")
    return masked_mean(error.mean(dim=(0, 2)), mask)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Compute the asymmetric square whose minimum is that expectile of the targets, error = target - prediction.

    error of any shape -> the same shape (Kostrikov et al., 2021, Eq. 5).
    """
    return torch.where(error > 0, expectile, 1.0 - expectile) * error.square()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return mean of x over the places where mask is True, 0 if there are none; both of one shape."""
    m = mask.to(x.dtype)
    return (x * m).sum() / m.sum().clamp_min(1)
