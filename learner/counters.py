"""What a learner counts, and saves with its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """How far a run is. Evaluations and checkpoints as multiples of their interval passed."""

    env_steps: int = 0
    decisions: int = 0
    episodes: int = 0
    evaluations: int = 0
    checkpoints: int = 0
    actor_restarts: int = 0
    environment_failures: int = 0
    wall_seconds: float = 0.0
