"""Targets of values: the per-dimension Bellman update (paper, Eq. 2) with n-step returns, and lambda-returns.

S is the number of leading steps of each window that are QT training states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qttdm.common.shapes import check_shape


def n_step_returns(
    rewards: Tensor, mask: Tensor, terminated: Tensor, states: int, n: int, discount: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute discounted reward sums of up to n steps, shorter where the window or the episode ends.

    rewards [B, L], mask and terminated bool [B, L], states S <= L
    -> returns [B, S];
       bootstrap weight [B, S]: gamma^m after m summed steps, 0 where the task terminated among them;
       bootstrap index int64 [B, S] into the window's L+1 observations.
    """
    length = rewards.shape[1]
    check_shape(mask, "B L", B=rewards.shape[0], L=length)
    assert states <= length, (states, length)
    returns = torch.zeros_like(rewards[:, :states])
    weight = torch.ones_like(returns)
    index = torch.arange(states, device=rewards.device).expand_as(returns)
    for k in range(min(n, length)):
        # Step t+k of each state t, padded behind the window's end with steps that do not exist.
        present = window_slice(mask, k, states)
        returns = returns + weight * window_slice(rewards, k, states) * present
        goes_on = ~window_slice(terminated, k, states)
        weight = torch.where(present, weight * discount * goes_on, weight)
        index = index + present
    return returns, weight, index


def window_slice(x: Tensor, start: int, width: int) -> Tensor:
    """Slice x [B, L] -> its columns start .. start+width-1, zeros (False) where there are none: [B, width]."""
    piece = x[:, start : start + width]
    return torch.nn.functional.pad(piece, (0, width - piece.shape[1])) if piece.shape[1] < width else piece


def bellman_targets(
    next_dimension_q: Tensor,
    bootstrap_q: Tensor,
    returns: Tensor,
    bootstrap_weight: Tensor,
    returns_to_go: Tensor | None,
    taken_clamp: bool = False,
) -> Tensor:
    """Compute Eq. 2 for every action dimension from the target's Q-values: minimum of the heads, maximum over bins.

    next_dimension_q [2, B, N-1, K]: Q(s_t, a_t^{1:i}, .) of dimensions 2..N, the targets of dimensions 1..N-1 (no
        reward, no discount);
    bootstrap_q [2, B, K]: Q(s_{t+m}, .) of the first dimension at the state after the summed rewards;
    returns, bootstrap_weight [B]: see `n_step_returns`; returns_to_go [B] or None: a Monte-Carlo return that bounds
        every target from below, for sparse rewards (Wilcox et al., 2022);
    taken_clamp: bound the targets of dimensions 1..N-1 from below by the last one's. Q(s_t, a_t^{1:i}) is the value of
        the best dimensions that follow, so at least that of those taken. By Eq. 2 alone a reward comes to the first
        dimension, which the next bootstrap reads, after N moves of the target network.
    -> [B, N].
    """
    check_shape(next_dimension_q, "heads B dims K")
    same_step = next_dimension_q.amin(dim=0).amax(dim=-1)  # [B, N-1]
    last = returns + bootstrap_weight * bootstrap_q.amin(dim=0).amax(dim=-1)  # [B]
    if taken_clamp:
        same_step = torch.maximum(same_step, last.unsqueeze(1))
    targets = torch.cat([same_step, last.unsqueeze(1)], dim=1)  # [B, N]
    return targets if returns_to_go is None else torch.maximum(targets, returns_to_go.unsqueeze(1))


def advantages(
    rewards: Tensor, discounts: Tensor, values: Tensor, next_values: Tensor, cut: Tensor, trace: float
) -> Tensor:
    """Compute generalised advantages (Schulman et al., 2016) with a discount of each step.

        A_t = r_t + gamma_t V'_t - V_t + lambda gamma_t A_{t+1},  the last term only where no cut parts t from t+1

    All [H, ..], the step first: next_values V' of what follows each step, cut bool; trace lambda. A + V are the
    lambda-returns.
    """
    errors = rewards + discounts * next_values - values
    carried = trace * discounts * ~cut
    out, later = [], torch.zeros_like(errors[0])
    for error, weight in zip(errors.flip(0), carried.flip(0), strict=True):
        later = error + weight * later
        out.append(later)
    return torch.stack(out[::-1])
