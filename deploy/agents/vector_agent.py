"""What agents have in common that observe a vector and take continuous actions."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

from qttdm.common.contracts import TaskSpec, vector_data
from qttdm.deploy.agents.checks import check_vectors, check_window


class VectorAgent:
    """Says what data it needs, and which tasks it fits; learner and policy are each agent's own."""

    window_key: ClassVar[str | None] = None
    """setting that is the length of a training window; None: a window is one transition"""

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        self.settings, self.task = settings, task
        window = 1 if self.window_key is None else attrgetter(self.window_key)(settings)
        self.data = vector_data(task.obs_dim, task.action_dim, window, settings.discount)
        self.batch_size: int = settings.learner.batch_size

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError for images, for discrete actions, and if a window is longer than an episode."""
        check_vectors(task)
        if self.window_key is not None:
            check_window(self.window_key, self.data.window, task)

    def exploration(self, progress: float) -> float:
        """Explore as the policy does by itself: as its planner is configured to, or by draws from an actor."""
        return 1.0
