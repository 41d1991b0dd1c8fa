"""TDM: plan with the dynamics model alone, the paper's first ablation. With random shooting, the simplest agent."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.models.tdm import TDM, TDMConfig
from qttdm.deploy.agents.checks import check_elites, check_horizon
from qttdm.deploy.agents.vector_agent import VectorAgent
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


class TDMAgent(VectorAgent):
    """A dynamics model and a planner; the return beyond the horizon counts as 0."""

    Settings = TDMAgentConfig
    settings: TDMAgentConfig
    window_key = "tdm.window"

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the dynamics model."""
        c = self.settings.learner
        return Learner(c, [TDMLearner(c.tdm, self._tdm().to(device), c.compile)], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        """Plan with it."""
        c, tdm = self.settings, self._tdm()
        planner = c.planner.make(c.discount, self.task.action_dim, tdm)
        return PlanningPolicy(planner, nn.ModuleDict({"tdm": tdm}), self.data, device, bfloat16, c.planner.compile)

    def _tdm(self) -> TDM:
        return TDM(self.settings.tdm, self.task.obs_dim, self.task.action_dim, self.task.terminates)
