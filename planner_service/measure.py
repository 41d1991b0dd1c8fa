"""What is told to Prometheus of planning: by an actor that plans for itself, and by the service."""

from __future__ import annotations

import numpy as np

from qttdm.common.contracts import Decisions
from qttdm.common.metrics.telemetry import Telemetry


def tell_plan(telemetry: Telemetry, decided: Decisions) -> None:
    """What the planner promises, and what it rests on."""
    if not decided.figures:
        return
    telemetry.observe("qttdm_planner_iterations", decided.iterations)
    telemetry.set("qttdm_plan_value", float(decided.values.mean()))
    telemetry.set("qttdm_plan_std", float(decided.figures["std"].mean()))
    terminal = np.abs(decided.figures["terminal"])
    rewards = np.abs(decided.values - decided.figures["terminal"])
    telemetry.set("qttdm_plan_terminal_share_ratio", float((terminal / (terminal + rewards + 1e-9)).mean()))
