"""A bandit of 20 arms for the actor-critic alone: what a plain entropy bonus costs, and what a threshold does not.

A good arm pays 1, a bad one nothing. One pull is an episode, so what is imagined is exact, and all that differs is how
entropy counts. A bonus of weight w leaves a bad arm exp(-ln(20) / w) times as likely as a good one; a threshold
leaves it alone as long as the entropy is above. (Robine et al., 2023.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qttdm.common.models.actor_critic import ActorCritic, ActorCriticConfig
from qttdm.learner.parts.actor_critic import (
    ActorCriticLearner,
    ActorCriticLearnerConfig,
    ActorOptimizerConfig,
    CriticOptimizerConfig,
)
from qttdm.learner.parts.imagination import Imagined

ARMS = 20
PULLS = 64
"""in an update"""
WEIGHT = 2.0
"""of the entropy: that a plain bonus of it costs something, and a threshold binds although an arm pays 1"""


class Pulls(ActorCriticLearner):
    """Learns from pulls in place of a world model's imagination."""

    def __init__(self, good: int, threshold: float) -> None:
        """good: arms that pay."""
        config = ActorCriticLearnerConfig(
            actor=ActorOptimizerConfig(learning_rate=1e-3),
            critic=CriticOptimizerConfig(learning_rate=1e-3),
            entropy_weight=WEIGHT,
            entropy_threshold=threshold,
        )
        network = ActorCritic(ActorCriticConfig(hidden=64, layers=2), 1, 1, ARMS)
        super().__init__(config, network, None)  # type: ignore[arg-type]  # nothing is imagined by a model
        self.pays = (torch.arange(ARMS) < good).float()

    def imagine(self) -> Imagined:
        """Pull arms as the policy draws them."""
        latents = torch.ones(1, PULLS, 1)
        with torch.no_grad():
            actions = self.network.draw(latents, torch.rand(1, PULLS))
        nothing = torch.zeros(1, PULLS)
        return Imagined(latents, actions, self.pays[actions], nothing, latents, nothing == 0, nothing + 1)

    def learned(self) -> tuple[float, float]:
        """Return what a pull pays on average, and the policy's entropy, a share of the largest."""
        with torch.no_grad():
            chances: Tensor = nn.functional.softmax(self.network.actor(torch.ones(1)), dim=-1)
            _, entropy = self.network.judge(torch.ones(1), torch.tensor(0))
        return float(chances @ self.pays), float(entropy)


def learn(good: int, threshold: float, seed: int, updates: int) -> tuple[float, float]:
    """Learn so long; as `Pulls.learned`."""
    torch.manual_seed(seed)
    learner = Pulls(good, threshold)
    for update in range(updates):
        learner.update({"rewards": torch.zeros(1)}, update / updates)
    return learner.learned()
