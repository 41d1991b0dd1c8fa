"""QT-TDM: plan with a dynamics model, and let a Q-Transformer propose actions and say what lies beyond the horizon.

TDM --imagines--> planner <--proposals, terminal values-- QT
TDMLearner (Eq. 8), QTLearner (Eq. 2, 9) on the same batches (Algorithm 1)
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import Policy
from qttdm.common.models.qt import QT, QTConfig
from qttdm.common.models.tdm import TDM, TDMConfig
from qttdm.deploy.agents.checks import check_horizon, check_targets
from qttdm.deploy.agents.vector_agent import VectorAgent
from qttdm.learner.learner import Learner, LearnerConfig, Part
from qttdm.learner.parts.qt import QTLearner, QTLearnerConfig
from qttdm.learner.parts.tdm import TDMLearner, TDMLearnerConfig
from qttdm.planner_service.planners.choice import PlannerConfig
from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.policies.greedy import EpsilonConfig, GreedyPolicy
from qttdm.planner_service.policies.planning import PlanningPolicy


class QTTDMLearnerConfig(LearnerConfig):
    """Both updates."""

    tdm: TDMLearnerConfig = TDMLearnerConfig()
    """the dynamics model's update"""
    qt: QTLearnerConfig = QTLearnerConfig()
    """the Q-Transformer's"""


class QTTDMConfig(Config):
    """Defaults are the paper's."""

    discount: float = Field(default=0.98, gt=0, lt=1)
    """gamma, per decision"""
    tdm: TDMConfig = TDMConfig()
    """the dynamics model"""
    qt: QTConfig = QTConfig()
    """the Q-Transformer"""
    planner: PlannerConfig = MPPIConfig()
    """what searches in the dynamics model"""
    act: Literal["plan", "policy"] = "plan"
    """policy: the Q-Transformer's own action, in a fraction of the time: to evaluate and serve a trained run"""
    learner: QTTDMLearnerConfig = QTTDMLearnerConfig()
    """how both learn"""

    @model_validator(mode="after")
    def _fits(self) -> QTTDMConfig:
        if self.tdm.bins != self.qt.bins:
            raise ValueError(
                f"tdm.bins={self.tdm.bins} and qt.bins={self.qt.bins} differ; QT and TDM read the same action tokens, "
                f"want both equal"
            )
        check_horizon(self.planner.horizon, self.tdm)
        check_targets(self.learner.qt, self.tdm.window, "tdm.window")
        return self


class QTTDM(VectorAgent):
    """The paper's method."""

    Settings = QTTDMConfig
    settings: QTTDMConfig
    window_key = "tdm.window"

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train both on the same batches."""
        c, tdm, qt = self.settings.learner, self._tdm().to(device), self._qt().to(device)
        parts: list[Part] = [TDMLearner(c.tdm, tdm, c.compile), QTLearner(c.qt, qt, self.settings.discount, c.compile)]
        return Learner(c, parts, device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> Policy:
        """Plan with both; or act by the QT alone, keeping the TDM's weights so that a run's checkpoints fit."""
        c, tdm, qt = self.settings, self._tdm(), self._qt()
        networks = nn.ModuleDict({"tdm": tdm, "qt": qt})
        if c.act == "policy":
            return GreedyPolicy(qt, networks, self.data, device)
        planner = c.planner.make(c.discount, self.task.action_dim, tdm, qt)
        return PlanningPolicy(planner, networks, self.data, device, bfloat16, c.planner.compile)

    def exploration(self, progress: float) -> float:
        """Explore as the planner is configured to; without one, by uniform actions, fewer and fewer."""
        return 1.0 if self.settings.act == "plan" else EpsilonConfig().at(progress)

    def _tdm(self) -> TDM:
        return TDM(self.settings.tdm, self.task.obs_dim, self.task.action_dim, self.task.terminates)

    def _qt(self) -> QT:
        return QT(self.settings.qt, self.task.obs_dim, self.task.action_dim)
