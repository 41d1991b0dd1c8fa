"""How good the models are on episodes that they have not learned from: what they predict, against what happened.

Letters: T decisions of an episode, R states from which is predicted, all episodes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qttdm.actors.measured import MeasuredPolicy
from qttdm.common.contracts import DynamicsModel
from qttdm.common.episode import Episode
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.planner_service.policies.planning import PlanningPolicy

MOST_ROOTS = 1000  # states that are predicted from, evenly spread: as much work as two decisions of the paper's planner


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of one kind of prediction."""

    state: float
    """per dimension"""
    state_ratio: float
    """over that of predicting that nothing moves"""
    reward: float


@torch.inference_mode()
def model_errors(
    dynamics: DynamicsModel, episodes: Sequence[Episode], horizon: int, reward_scale: float, device: torch.device
) -> tuple[Errors, Errors] | None:
    """Of the next step, and of step H = `horizon` predicted open-loop; both as the planner does it, without a history.

    None if no episode is H decisions long.
    """
    roots = [(episode, t) for episode in episodes for t in range(episode.decisions - horizon + 1)]
    roots = roots[:: -(-len(roots) // MOST_ROOTS) or 1]
    if not roots:
        return None

    def windows(name: str, length: int) -> Tensor:
        """[R, length, ..]"""
        return torch.from_numpy(np.stack([getattr(e, name)[t : t + length] for e, t in roots])).to(device)

    observations, actions = windows("observations", horizon + 1), windows("actions", horizon)  # [R, H+1, M], [R, H, N]
    rewards = windows("rewards", horizon) * reward_scale  # [R, H]
    root = dynamics.start({"observations": observations[:, 0]})
    rollout = dynamics.select(root, torch.arange(len(roots), device=device), horizon)
    predicted = []  # of each step: states [R, M], rewards [R]
    for step in range(horizon):
        prediction = dynamics.step(rollout, actions[:, step])
        predicted.append((dynamics.state(rollout)["observations"], prediction.rewards))

    def errors(step: int) -> Errors:
        """Of step 0 .. H-1."""
        true = observations[:, step + 1]  # [R, M]
        state = (predicted[step][0] - true).square().mean()
        still = (observations[:, 0] - true).square().mean()
        reward = (predicted[step][1] - rewards[:, step]).square().mean()
        return Errors(float(state), float(state / still.clamp(min=1e-12)), float(reward))

    return errors(0), errors(horizon - 1)


def realised(rewards: np.ndarray, promised: np.ndarray, terminated: bool, discount: float) -> np.ndarray:
    """What each decision got: rewards [T], in the values' unit, and values promised [T] -> [T].

    Discounted rewards to the end. Where a time limit ended the episode there is no telling what would have come: from
    the last decision on what it promised is taken for true.
    """
    got = np.empty(len(rewards))
    later = float(rewards[-1] if terminated else promised[-1])
    for t in reversed(range(len(rewards))):
        later = later if t == len(rewards) - 1 else float(rewards[t]) + discount * later
        got[t] = later
    return got


def saturation(actions: np.ndarray, beyond: float = 0.95) -> float:
    """Share of action components [T, N] near the ends of their range, [-1, 1]."""
    return float((np.abs(actions) > beyond).mean())


def tell_evaluation(
    telemetry: Telemetry, policy: MeasuredPolicy, episodes: Sequence[Episode], discount: float, reward_scale: float
) -> None:
    """All of this about the episodes that the policy has just been evaluated on."""
    telemetry.inc("qttdm_acted_episodes_total", len(episodes))
    telemetry.set("qttdm_action_saturation_ratio", float(np.mean([saturation(e.actions) for e in episodes])))
    promised = np.stack(policy.promised, axis=1)  # [E, T]
    expected = [row[: e.decisions] for row, e in zip(promised, episodes, strict=True)]
    got = [
        realised(e.rewards * reward_scale, values, e.terminated, discount)
        for values, e in zip(expected, episodes, strict=True)
    ]
    telemetry.set("qttdm_value_expected", float(np.concatenate(expected).mean()))
    telemetry.set("qttdm_value_realised", float(np.concatenate(got).mean()))
    planning = policy.policy
    if not isinstance(planning, PlanningPolicy):
        return
    planner = planning.planner
    with torch.autocast(planning.device.type, torch.bfloat16, enabled=planning.bfloat16):
        errors = model_errors(planner.dynamics, episodes, planner.horizon, reward_scale, planning.device)
    if errors is not None:
        for rollout, error in zip(("one_step", "open_loop"), errors, strict=True):
            telemetry.set("qttdm_model_state_error", error.state, rollout=rollout)
            telemetry.set("qttdm_model_state_error_ratio", error.state_ratio, rollout=rollout)
            telemetry.set("qttdm_model_reward_error", error.reward, rollout=rollout)
