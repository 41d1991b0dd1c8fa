"""IQL: implicit Q-learning, a baseline for logged data: it values and imitates logged actions only. Nothing is planned.

One window is one transition. It acts by its policy's mean; when collecting, by the policy's own Gaussian.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from qttdm.common.config import Config
from qttdm.common.models.iql import IQL, IQLConfig
from qttdm.deploy.agents.vector_agent import VectorAgent
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.iql import IQLLearner, IQLLearnerConfig
from qttdm.planner_service.policies.greedy import GreedyPolicy


class IQLOnlyLearnerConfig(LearnerConfig):
    """The update."""

    batch_size: int = Field(default=256, gt=0)
    """B, transitions"""
    iql: IQLLearnerConfig = IQLLearnerConfig()
    """that of the four networks"""


class IQLAgentConfig(Config):
    """Defaults are the paper's."""

    discount: float = Field(default=0.99, gt=0, lt=1)
    """gamma, per decision"""
    iql: IQLConfig = IQLConfig()
    """the networks"""
    learner: IQLOnlyLearnerConfig = IQLOnlyLearnerConfig()
    """how it learns"""


class IQLAgent(VectorAgent):
    """V, two Qs and a policy."""

    Settings = IQLAgentConfig
    settings: IQLAgentConfig

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train all four."""
        c, iql = self.settings.learner, self._iql().to(device)
        return Learner(c, [IQLLearner(c.iql, iql, self.settings.discount, c.compile)], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> GreedyPolicy:
        """Act by the policy's mean."""
        iql = self._iql()
        return GreedyPolicy(iql, nn.ModuleDict({"iql": iql}), self.data, device)

    def _iql(self) -> IQL:
        return IQL(self.settings.iql, self.task.obs_dim, self.task.action_dim)
