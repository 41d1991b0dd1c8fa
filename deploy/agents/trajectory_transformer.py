"""The Trajectory Transformer: learn what follows what in logged episodes, and search in it by beams.

SequenceModel --next tokens, rewards, values--> BeamSearch <--Q of the newest step, TT(+Q)-- IQL
SequenceLearner (cross-entropy of every token)                                               IQLLearner
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import TaskSpec
from qttdm.common.models.iql import IQL, IQLConfig
from qttdm.common.models.sequence_model import Layout, SequenceModel, SequenceModelConfig
from qttdm.deploy.agents.checks import check_not_compiled, check_sequence
from qttdm.deploy.agents.vector_agent import VectorAgent
from qttdm.learner.learner import Learner, LearnerConfig, Part
from qttdm.learner.parts.iql import IQLLearner, IQLLearnerConfig
from qttdm.learner.parts.sequence import SequenceLearner, SequenceLearnerConfig
from qttdm.planner_service.planners.beam_search import BeamSearch, BeamSearchConfig
from qttdm.planner_service.policies.planning import PlanningPolicy


class TrajectoryTransformerLearnerConfig(LearnerConfig):
    """The updates."""

    batch_size: int = Field(default=256, gt=0)
    """B, windows"""
    sequence: SequenceLearnerConfig = SequenceLearnerConfig()
    """the sequence model's update"""
    iql: IQLLearnerConfig = IQLLearnerConfig()
    """the critic's, if there is one"""


class TrajectoryTransformerConfig(Config):
    """Defaults are the published ones, but for the window: context and plan fit into it."""

    discount: float = Field(default=0.99, gt=0, lt=1)
    """gamma, per decision"""
    goals: bool = False
    """train the model to be given an observation to be reached, the episode's last, in front of half of the batches"""
    model: SequenceModelConfig = SequenceModelConfig()
    """the sequence model"""
    critic: bool = False
    """TT(+Q): the search's newest steps are valued by IQL's Q, learned on the same batches; where rewards are rare"""
    iql: IQLConfig = IQLConfig()
    """the critic's networks"""
    planner: BeamSearchConfig = BeamSearchConfig()
    """the search"""
    learner: TrajectoryTransformerLearnerConfig = TrajectoryTransformerLearnerConfig()
    """how it learns"""

    @model_validator(mode="after")
    def _fits(self) -> TrajectoryTransformerConfig:
        check_sequence(self.model.window, self.planner.context, self.planner.horizon)
        check_not_compiled(self.learner)
        if self.planner.goal is not None and not self.goals:
            raise ValueError("planner.goal needs a model that was trained with goals=true")
        return self


class TrajectoryTransformer(VectorAgent):
    """One model of whole sequences; three ways to search in it."""

    Settings = TrajectoryTransformerConfig
    settings: TrajectoryTransformerConfig

    def __init__(self, settings: TrajectoryTransformerConfig, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.data = replace(self.data, window=settings.model.window, ends=True)

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the sequence model."""
        c = self.settings
        parts: list[Part] = [SequenceLearner(c.learner.sequence, self._model().to(device), c.discount)]
        if c.critic:
            parts.append(IQLLearner(c.learner.iql, self._critic().to(device), c.discount))
        return Learner(c.learner, parts, device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        """Search in it."""
        c, model = self.settings, self._model()
        networks, critic = nn.ModuleDict({"sequence": model}), None
        if c.critic:
            networks["iql"] = iql = self._critic()
            critic = iql.q
        planner = BeamSearch(c.planner, c.discount, model, critic)
        return PlanningPolicy(planner, networks, self.data, device, bfloat16)

    def _critic(self) -> IQL:
        return IQL(self.settings.iql, self.task.obs_dim, self.task.action_dim)

    def _model(self) -> SequenceModel:
        layout = Layout(
            {"observations": self.task.obs_dim, "actions": self.task.action_dim}, outputs=("rewards", "values")
        )
        return SequenceModel(self.settings.model, layout, self.task.terminates, self.settings.goals)
