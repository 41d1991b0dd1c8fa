"""QT: act by the Q-Transformer alone, epsilon-greedy when collecting, the paper's second ablation."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.models.qt import QT, QTConfig
from qttdm.deploy.agents.checks import check_targets
from qttdm.deploy.agents.vector_agent import VectorAgent
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.qt import QTLearner, QTLearnerConfig
from qttdm.planner_service.policies.greedy import EpsilonConfig, GreedyPolicy


class QTOnlyLearnerConfig(LearnerConfig):
    """The update."""

    qt: QTLearnerConfig = QTLearnerConfig()
    """the Q-Transformer's update"""


class QTAgentConfig(Config):
    """Defaults are the paper's."""

    discount: float = Field(default=0.98, gt=0, lt=1)
    """gamma, per decision"""
    window: int = Field(default=20, gt=0)
    """L, decisions of a training window"""
    qt: QTConfig = QTConfig()
    """the Q-Transformer"""
    epsilon: EpsilonConfig = EpsilonConfig()
    """exploration when collecting"""
    learner: QTOnlyLearnerConfig = QTOnlyLearnerConfig()
    """how it learns"""

    @model_validator(mode="after")
    def _fits(self) -> QTAgentConfig:
        check_targets(self.learner.qt, self.window, "window")
        return self


class QTAgent(VectorAgent):
    """A Q-function of discrete bins, one dimension after the other; no planning."""

    Settings = QTAgentConfig
    settings: QTAgentConfig
    window_key = "window"

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the Q-function."""
        c, qt = self.settings.learner, self._qt().to(device)
        return Learner(c, [QTLearner(c.qt, qt, self.settings.discount, c.compile)], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> GreedyPolicy:
        """Act greedily, in float32."""
        qt = self._qt()
        return GreedyPolicy(qt, nn.ModuleDict({"qt": qt}), self.data, device)

    def exploration(self, progress: float) -> float:
        """Return epsilon, after its schedule."""
        return self.settings.epsilon.at(progress)

    def _qt(self) -> QT:
        return QT(self.settings.qt, self.task.obs_dim, self.task.action_dim)
