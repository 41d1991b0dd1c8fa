"""An MLP as the dynamics model, and a planner: the baselines of every other model. MLP, MLP of changes, and PETS.

They are settings of one agent: `model.predict_change`, and for PETS also members 5, particles 20, probabilistic.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import TaskSpec
from qttdm.common.models.mlp_dynamics import MLPDynamics, MLPDynamicsConfig
from qttdm.deploy.agents.checks import check_elites
from qttdm.deploy.agents.vector_agent import VectorAgent
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.mlp_dynamics import MLPDynamicsLearner, MLPDynamicsLearnerConfig
from qttdm.planner_service.planners.choice import PlannerConfig
from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.policies.planning import PlanningPolicy


class MLPOnlyLearnerConfig(LearnerConfig):
    """The update."""

    batch_size: int = Field(default=256, gt=0)
    """transitions of each member; B is that times `model.members`"""
    mlp: MLPDynamicsLearnerConfig = MLPDynamicsLearnerConfig()
    """the dynamics model's update"""


class MLPAgentConfig(Config):
    """Defaults are those of a plain MLP."""

    discount: float = Field(default=0.98, gt=0, lt=1)
    """gamma, per decision"""
    model: MLPDynamicsConfig = MLPDynamicsConfig()
    """the dynamics model"""
    planner: PlannerConfig = MPPIConfig()
    """what searches in it"""
    learner: MLPOnlyLearnerConfig = MLPOnlyLearnerConfig()
    """how it learns"""

    @model_validator(mode="after")
    def _fits(self) -> MLPAgentConfig:
        check_elites(self.planner)
        return self


class MLPAgent(VectorAgent):
    """A dynamics model without memory and a planner; the return beyond the horizon counts as 0."""

    Settings = MLPAgentConfig
    settings: MLPAgentConfig

    def __init__(self, settings: MLPAgentConfig, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.data = replace(self.data, discount=None)
        self.batch_size *= settings.model.members

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the dynamics model."""
        c = self.settings.learner
        return Learner(
            c, [MLPDynamicsLearner(c.mlp, self._mlp().to(device), c.compile)], device, total_updates, bfloat16
        )

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        """Plan with it."""
        c, mlp = self.settings, self._mlp()
        planner = c.planner.make(c.discount, self.task.action_dim, mlp)
        return PlanningPolicy(planner, nn.ModuleDict({"mlp": mlp}), self.data, device, bfloat16, c.planner.compile)

    def _mlp(self) -> MLPDynamics:
        return MLPDynamics(self.settings.model, self.task.obs_dim, self.task.action_dim, self.task.terminates)
