"""TWM: a transformer world model, and an actor-critic that learns in its imagination alone (Robine et al., 2023).

WorldModel --imagined experience--> ActorCritic --> a decision: encoder and actor, no planning and no transformer

Any task: vectors or images, continuous or discrete actions.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from qttdm.common.config import Config
from qttdm.common.contracts import TaskSpec, task_data
from qttdm.common.models.actor_critic import ActorCritic, ActorCriticConfig, LatentActor
from qttdm.common.models.latent import Decoder, Encoder
from qttdm.common.models.world_model import Dynamics, WorldModelConfig
from qttdm.deploy.agents.checks import check_not_compiled
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.actor_critic import ActorCriticLearner, ActorCriticLearnerConfig
from qttdm.learner.parts.world_model import WorldModelLearner, WorldModelLearnerConfig
from qttdm.planner_service.policies.greedy import GreedyPolicy


class TWMLearnerConfig(LearnerConfig):
    """The updates."""

    batch_size: int = Field(default=100, gt=0)
    """B, windows"""
    world_model: WorldModelLearnerConfig = WorldModelLearnerConfig()
    """the world model's update"""
    actor_critic: ActorCriticLearnerConfig = ActorCriticLearnerConfig()
    """actor's and critic's, and how much is imagined"""


class TWMConfig(Config):
    """Defaults are the published ones."""

    discount: float = Field(default=0.99, gt=0, lt=1)
    """gamma, per decision"""
    stack: int = Field(default=4, gt=0)
    """images that are looked at together, the newest and those before it; of vectors it is one"""
    world_model: WorldModelConfig = WorldModelConfig()
    """observation model and dynamics"""
    actor_critic: ActorCriticConfig = ActorCriticConfig()
    """actor and critic"""
    learner: TWMLearnerConfig = TWMLearnerConfig()
    """how they learn"""

    @model_validator(mode="after")
    def _fits(self) -> TWMConfig:
        check_not_compiled(self.learner)
        return self


class TWMAgent:
    """Acts by what it has learned in imagination."""

    Settings = TWMConfig

    def __init__(self, settings: TWMConfig, task: TaskSpec) -> None:
        self.settings, self.task = settings, task
        self.data = task_data(task, settings.world_model.window, None, settings.stack)
        self.batch_size = settings.learner.batch_size

    def check(self, task: TaskSpec) -> None:
        """Fit any task: windows longer than an episode are padded."""

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Train the world model, then actor and critic on what it imagines."""
        c, world = self.settings.learner, self.world_model(device)
        acting = ActorCriticLearner(c.actor_critic, self._actor_critic().to(device), world)
        return Learner(c, [world, acting], device, total_updates, bfloat16)

    def world_model(self, device: torch.device) -> WorldModelLearner:
        """Train the world model alone."""
        c, task = self.settings, self.task
        decoder = Decoder(c.world_model.latent, self._shown())
        dynamics = Dynamics(c.world_model, task.action_dim, task.choices, c.discount, task.terminates)
        return WorldModelLearner(
            c.learner.world_model, self._encoder().to(device), decoder.to(device), dynamics.to(device)
        )

    def policy(self, device: torch.device, bfloat16: bool) -> GreedyPolicy:
        """Encode, and act by the actor."""
        encoder, actor_critic = self._encoder(), self._actor_critic()
        networks = nn.ModuleDict({"world_model": encoder, "actor_critic": actor_critic})
        return GreedyPolicy(LatentActor(encoder, actor_critic), networks, self.data, device)

    def exploration(self, progress: float) -> float:
        """Draw each action that is collected from the actor."""
        return 1.0

    def _shown(self) -> tuple[int, ...]:
        """Shape of what the encoder sees."""
        *shape, channels = self.task.obs_shape
        return (*shape, channels * self.data.stack)

    def _encoder(self) -> Encoder:
        return Encoder(self.settings.world_model.latent, self._shown())

    def _actor_critic(self) -> ActorCritic:
        c = self.settings
        return ActorCritic(c.actor_critic, c.world_model.latent.size, self.task.action_dim, self.task.choices)
