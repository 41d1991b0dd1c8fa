"""What is told to Prometheus of planning: by an actor that plans for itself, and by the service."""

from __future__ import annotations

import numpy as np

from qttdm.common.metrics.telemetry import Telemetry
from qttdm.planner_service.policies.policy import Decisions


def tell_plan(telemetry: Telemetry, decided: Decisions) -> None:
    """What the planner promises, and what it rests on."""
    if decided.iterations == 0:
        return
    telemetry.observe("qttdm_planner_iterations", decided.iterations)
    telemetry.set("qttdm_plan_value", float(decided.values.mean()))
    telemetry.set("qttdm_plan_std", float(decided.std.mean()))
    terminal, rewards = np.abs(decided.terminal), np.abs(decided.values - decided.terminal)
    telemetry.set("qttdm_plan_terminal_share_ratio", float((terminal / (terminal + rewards + 1e-9)).mean()))
