"""TDM: plan with the dynamics model alone, the paper's first ablation. With random shooting, the simplest agent."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import TaskSpec, vector_data
from qttdm.common.models.tdm import TDM, TDMConfig
from qttdm.deploy.agents.checks import check_elites, check_horizon, check_vectors, check_window
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.tdm import TDMLearner, TDMLearnerConfig
from qttdm.planner_service.planners.choice import PlannerConfig
from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.policies.planning import PlanningPolicy


class TDMOnlyLearnerConfig(LearnerConfig):
    """The update."""

    tdm: TDMLearnerConfig = TDMLearnerConfig()
    """the dynamics model's update"""


class TDMAgentConfig(Config):
    """Defaults are the paper's."""

    discount: float = Field(default=0.98, gt=0, lt=1)
    """gamma, per decision"""
    tdm: TDMConfig = TDMConfig()
    """the dynamics model"""
    planner: PlannerConfig = MPPIConfig()
    """what searches in it"""
    learner: TDMOnlyLearnerConfig = TDMOnlyLearnerConfig()
    """how it learns"""

    @model_validator(mode="after")
    def _fits(self) -> TDMAgentConfig:
        check_horizon(self.planner.horizon, self.tdm)
        check_elites(self.planner)
        return self


class TDMAgent:
    """A dynamics model and a planner; the return beyond the horizon counts as 0."""

    Settings = TDMAgentConfig

    def __init__(self, settings: TDMAgentConfig, task: TaskSpec) -> None:
        self.settings, self.task = settings, task
        self.data = vector_data(task.obs_dim, task.action_dim, settings.tdm.window, settings.discount)
        self.batch_size = settings.learner.batch_size

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError if a window is longer than an episode, for images, and for discrete actions."""
        check_vectors(task)
        check_window("tdm.window", self.settings.tdm.window, task)

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the dynamics model."""
        c = self.settings.learner
        return Learner(c, [TDMLearner(c.tdm, self._tdm().to(device), c.compile)], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        """Plan with it."""
        c, tdm = self.settings, self._tdm()
        planner = c.planner.make(c.discount, self.task.action_dim, tdm)
        return PlanningPolicy(planner, nn.ModuleDict({"tdm": tdm}), self.data, device, bfloat16, c.planner.compile)

    def exploration(self, progress: float) -> float:
        """Explore as the planner is configured to."""
        return 1.0

    def _tdm(self) -> TDM:
        return TDM(self.settings.tdm, self.task.obs_dim, self.task.action_dim, self.task.terminates)
