"""An agent of a user's own: the house's parts, a section of its own, and its own way to explore."""

import torch
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import TaskSpec, vector_data
from qttdm.common.models.tdm import TDM, TDMConfig
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.tdm import TDMLearner, TDMLearnerConfig
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from qttdm.planner_service.policies.planning import PlanningPolicy


class Curious:
    """A small dynamics model and random shooting."""

    class Settings(Config):
        width: int = 16
        samples: int = 8

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        self.settings, self.task = settings, task
        self.data, self.batch_size = vector_data(task.obs_dim, task.action_dim, 3, None), 4

    def check(self, task: TaskSpec) -> None:
        """Anything goes."""

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        part = TDMLearner(TDMLearnerConfig(), self._model().to(device))
        return Learner(LearnerConfig(), [part], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        model, planner = self._model(), RandomShootingConfig(horizon=2, samples=self.settings.samples)
        networks = nn.ModuleDict({"tdm": model})
        return PlanningPolicy(planner.make(0.9, self.task.action_dim, model), networks, self.data, device, bfloat16)

    def exploration(self, progress: float) -> float:
        return 1 - progress

    def _model(self) -> TDM:
        config = TDMConfig(embed_dim=self.settings.width, num_heads=2, num_layers=1, window=3, bins=5, head_dim=8)
        return TDM(config, self.task.obs_dim, self.task.action_dim, self.task.terminates)
