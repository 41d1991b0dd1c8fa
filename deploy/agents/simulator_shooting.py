"""Random shooting in the true simulator: what planning alone reaches. It learns nothing, so it needs no training."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import ArraySpec, TaskSpec, vector_data
from qttdm.common.models.simulator import Simulator
from qttdm.deploy.agents.checks import check_vectors
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from qttdm.planner_service.policies.planning import PlanningPolicy


class SimulatorShootingConfig(Config):
    """How long and how widely it searches."""

    discount: float = Field(default=0.98, gt=0, lt=1)
    """gamma, per decision"""
    planner: RandomShootingConfig = RandomShootingConfig()
    """the search"""
    threads: int | None = Field(default=None, gt=0)
    """that simulate at a time; null: as many as torch uses"""

    @model_validator(mode="after")
    def _fits(self) -> SimulatorShootingConfig:
        if self.planner.compile:
            raise ValueError("planner.compile=true: a simulator cannot be compiled; want false")
        return self


class SimulatorShooting:
    """The agent asks for the simulator's state beside the observation, and plans from it."""

    Settings = SimulatorShootingConfig

    def __init__(self, settings: SimulatorShootingConfig, task: TaskSpec) -> None:
        self.settings, self.task = settings, task
        data = vector_data(task.obs_dim, task.action_dim, 1, settings.discount)
        state = ArraySpec((task.simulator_state,), "float64")
        self.data = replace(data, observations={**data.observations, "simulator_state": state})
        self.batch_size = 1

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError for images and discrete actions."""
        check_vectors(task)

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Count updates; there is nothing to learn."""
        return Learner(LearnerConfig(batch_size=self.batch_size), [], device, total_updates, bfloat16)

    def policy(self, device: torch.device, bfloat16: bool) -> PlanningPolicy:
        """Plan in the simulator, on the CPU whatever the device."""
        c = self.settings
        planner = c.planner.make(c.discount, self.task.action_dim, Simulator(self.task, c.threads))
        return PlanningPolicy(planner, nn.ModuleDict(), self.data, torch.device("cpu"))

    def exploration(self, progress: float) -> float:
        """Explore no further: random sequences explore enough."""
        return 0.0
