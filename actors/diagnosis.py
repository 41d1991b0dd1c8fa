"""How good the models are on episodes that they have not learned from: what they predict, against what happened.

Letters: T decisions of an episode, R states from which is predicted, all episodes together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qttdm.actors.measured import MeasuredPolicy
from qttdm.common.contracts import DynamicsModel
from qttdm.common.episode import Episode
from qttdm.common.metrics.instruments import gauge
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.planner_service.policies.planning import PlanningPolicy

MOST_ROOTS = 1000  # states that are predicted from, evenly spread: as much work as two decisions of the paper's planner
ROLLOUTS = ("one_step", "open_loop")
MODEL_ERROR = gauge(
    "qttdm_model_state_error_ratio",
    ("evaluator",),
    "fraction",
    "mean squared error of a predicted state over the one of predicting that nothing moves: the next one, and the last "
    "one of the planner's horizon, predicted open-loop",
    "rollout",
    ROLLOUTS,
    lasting=True,
)


@torch.inference_mode()
def model_errors(
    dynamics: DynamicsModel, episodes: Sequence[Episode], horizon: int, device: torch.device
) -> tuple[float, float] | None:
    """Compute mean squared error of predicted states over that of predicting that nothing moves.

    Of the next step, and of step H = `horizon` predicted open-loop; both as the planner does it, without a history.

    None if no episode is H decisions long.
    """
    roots = [(episode, t) for episode in episodes for t in range(episode.decisions - horizon + 1)]
    roots = roots[:: -(-len(roots) // MOST_ROOTS) or 1]
    if not roots:
        return None

    def windows(name: str, length: int) -> Tensor:
        """[R, length, ..]"""
        return torch.from_numpy(np.stack([e.arrays[name][t : t + length] for e, t in roots])).to(device)

    observations, actions = windows("observations", horizon + 1), windows("actions", horizon)  # [R, H+1, M], [R, H, N]
    shown = ("observations", *roots[0][0].extra)
    root = dynamics.start({name: windows(name, 1)[:, 0] for name in shown})
    rollout = dynamics.select(root, torch.arange(len(roots), device=device), horizon)
    predicted = []  # states [R, M] of each step
    for step in range(horizon):
        dynamics.step(rollout, actions[:, step])
        predicted.append(dynamics.state(rollout)["observations"])

    def error(step: int) -> float:
        """Return the error of step 0 .. H-1."""
        true = observations[:, step + 1]  # [R, M]
        state = (predicted[step] - true).square().mean()
        still = (observations[:, 0] - true).square().mean()
        return float(state / still.clamp(min=1e-12))

    return error(0), error(horizon - 1)


def report_evaluation(telemetry: Telemetry, policy: MeasuredPolicy, episodes: Sequence[Episode]) -> None:
    """Report the model's errors on the episodes that the policy has just been evaluated on, if it has a model."""
    planning = policy.policy
    if not isinstance(planning, PlanningPolicy):
        return
    planner = planning.planner
    with torch.autocast(planning.device.type, torch.bfloat16, enabled=planning.bfloat16):
        errors = model_errors(planner.dynamics, episodes, planner.horizon, planning.device)
    if errors is not None:
        for rollout, error in zip(ROLLOUTS, errors, strict=True):
            telemetry.set(MODEL_ERROR, error, rollout=rollout)
