"""A generalist dynamics model: one transformer over the episodes of many tasks, and random shooting in it.

MixedReplay --batches of one length--> SequenceLearner (cross-entropy of every token)
SequenceModel (observation, reward, separator, action) <-- RandomShooting, with the episode so far as its prompt

Its weights do not depend on the task: it learns from the data sets of `training.dataset`, and acts on `task`, which
need not be among them. After Schubert et al., 2023; random shooting measures a model, it is no contender.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config, ConfigError
from qttdm.common.contracts import TaskSpec, vector_data
from qttdm.common.models.sequence_model import Layout, SequenceModel, SequenceModelConfig
from qttdm.deploy.agents.checks import check_not_compiled, check_sequence
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.sequence import SequenceLearner, SequenceLearnerConfig
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from qttdm.planner_service.policies.planning import PlanningPolicy


class GeneralistLearnerConfig(LearnerConfig):
    """The updates."""

    batch_size: int = Field(default=32, gt=0)
    """B, windows"""
    sequence: SequenceLearnerConfig = SequenceLearnerConfig(action_weight=1.0)
    """the sequence model's update"""


class GeneralistConfig(Config):
    """Defaults are a laptop's."""

    discount: float = Field(default=1.0, gt=0, le=1)
    """gamma, per decision; as published the planner adds up rewards as they are"""
    model: SequenceModelConfig = SequenceModelConfig(
        shared=True, embed_dim=64, num_heads=4, num_layers=2, dropout=0.0, window=10, bins=256
    )
    """the sequence model"""
    planner: RandomShootingConfig = RandomShootingConfig(horizon=6, samples=64, context=4)
    """the search; to act as the data does: samples=1, proposals=1, proposal_std=0, horizon=1"""
    learner: GeneralistLearnerConfig = GeneralistLearnerConfig()
    """how it learns"""

    @model_validator(mode="after")
    def _fits(self) -> GeneralistConfig:
        check_sequence(self.model.window, self.planner.context, self.planner.horizon)
        check_not_compiled(self.learner)
        if self.planner.compile:
            raise ValueError("planner.compile=true: its sequences grow with the episode; want false")
        if not self.model.shared:
            raise ValueError("model.shared=false: tables for one task's numbers cannot read another's; want true")
        return self


class Generalist:
    """One model, three uses: what follows, what is earned, what is done."""

    Settings = GeneralistConfig

    def __init__(self, settings: GeneralistConfig, task: TaskSpec) -> None:
        self.settings, self.task = settings, task
        # One step more than the model reads: the first one only says what reward came with the next.
        data = vector_data(task.obs_dim, task.action_dim, settings.model.window + 1, None)
        self.data = replace(data, many_tasks=True)
        self.batch_size = settings.learner.batch_size

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError for a task with more numbers than the model has places for."""
        most = self.settings.model.most_numbers
        if (longest := max(task.obs_dim, task.action_dim)) > most:
            raise ConfigError(f"model.most_numbers={most}: {task.name} has {longest} in a row; want at least as many")

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the sequence model."""
        c = self.settings
        part = SequenceLearner(c.learner.sequence, self._model().to(device), c.discount)
        return Learner(c.learner, [part], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        """Shoot in it."""
        c, model = self.settings, self._model()
        planner = c.planner.make(c.discount, self.task.action_dim, model)
        return PlanningPolicy(planner, nn.ModuleDict({"sequence": model}), self.data, device, bfloat16)

    def exploration(self, progress: float) -> float:
        """Explore no further: random sequences explore enough."""
        return 0.0

    def _model(self) -> SequenceModel:
        lengths = {"observations": self.task.obs_dim, "rewards": 1, "separator": 1, "actions": self.task.action_dim}
        return SequenceModel(self.settings.model, Layout(lengths, ()), can_terminate=False)
