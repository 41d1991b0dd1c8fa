"""Does a world model know which rewards it has emitted?

An action sets off an event: a light of brightness 1, .8, .6, .4, .2 in the five steps that follow. One of the five pays
1, at random, and nothing that is observed says which. In imagination an event must pay exactly once, as in the data:
a model that is not told its rewards cannot know whether this one has paid, and pays in each step by chance, exactly
once in 5 * .2 * .8^4 = 41% of events. (Robine et al., 2023, feed rewards back for this reason.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qttdm.common.contracts import ArraySpec, DataSpec
from qttdm.common.episode import Episode
from qttdm.common.models.latent import Decoder, Encoder, LatentConfig
from qttdm.common.models.world_model import Dynamics, WorldModelConfig
from qttdm.learner.parts.imagination import ImaginationConfig, draw_noise, imagine
from qttdm.learner.parts.world_model import WorldModelLearner, WorldModelLearnerConfig, WorldModelOptimizerConfig
from qttdm.replay.buffer import Replay, ReplayConfig

GLOW = 5
"""steps of an event"""
SETS_OFF = 0.3
"""chance of the action that does, where it is dark"""
EPISODES, STEPS, WINDOW, BATCH = 50, 200, 12, 32
DATA = DataSpec({"observations": ArraySpec((1,))}, ArraySpec((), "int64"), WINDOW, None, choices=2)
LATENT = LatentConfig(variables=8, classes=8, hidden=64, layers=2)
RATE = WorldModelOptimizerConfig(learning_rate=2e-3)
STARTS, HORIZON = 200, 40


def make_episode(rng: np.random.Generator) -> Episode:
    """Play an episode of random actions."""
    actions = (rng.random(STEPS) < SETS_OFF).astype(np.int64)
    brightness, rewards = np.zeros((STEPS + 1, 1), np.float32), np.zeros(STEPS, np.float32)
    left, pays = 0, 0
    for t in range(STEPS):
        brightness[t] = left / GLOW
        rewards[t] = left > 0 and left == pays
        if left > 0:
            left -= 1
        elif actions[t]:
            left, pays = GLOW, int(rng.integers(1, GLOW + 1))
    brightness[STEPS] = left / GLOW
    return Episode(brightness, actions, rewards, terminated=False, truncated=True, env_steps=STEPS)


def train(feedback: str, seed: int, updates: int) -> WorldModelLearner:
    """Train a small world model on 10,000 steps."""
    torch.manual_seed(seed)
    rng, replay = np.random.default_rng(seed), Replay(ReplayConfig(capacity=EPISODES * STEPS), DATA, seed)
    for _ in range(EPISODES):
        replay.add(make_episode(rng))
    sizes = WorldModelConfig.model_validate(
        {
            "embed_dim": 64,
            "num_layers": 2,
            "dropout": 0.0,
            "window": WINDOW,
            "latent": LATENT.model_dump(),
            "head_layers": 2,
            "latent_head": 64,
            "number_head": 64,
            "reward_feedback": feedback,
        }
    )
    dynamics = Dynamics(sizes, 1, 2, discount=0.99, terminates=False)
    config = WorldModelLearnerConfig(observation_model=RATE, dynamics=RATE)
    learner = WorldModelLearner(config, Encoder(LATENT, (1,)), Decoder(LATENT, (1,)), dynamics)
    for update in range(updates):
        batch = {name: torch.from_numpy(array) for name, array in replay.sample(BATCH).items()}
        learner.update(batch, update / updates)
    return learner


def payments(learner: WorldModelLearner) -> np.ndarray:
    """Imagine, and return how often each event that began and ended in imagination paid, [events]."""
    seen, dynamics, scale = learner.seen, learner.dynamics.eval(), learner.network.scale
    assert seen is not None
    assert scale is not None
    noise = draw_noise(ImaginationConfig(starts=STARTS, horizon=HORIZON), seen, LATENT.variables, ())

    def act(latents: Tensor, chance: Tensor) -> Tensor:
        return (chance < SETS_OFF).long()

    imagined = imagine(dynamics, seen, act, noise, cut_below=0.0)
    with torch.no_grad():
        lit = (scale.undo(learner.decoder(imagined.latents))[..., 0] > 0.5 / GLOW).numpy()  # [H, n]
    rewards, paid = imagined.rewards.numpy(), []
    for column in range(STARTS):
        edges = np.flatnonzero(np.diff(lit[:, column].astype(int))) + 1  # where it turns on or off
        begins = edges[lit[edges, column]]
        for begin in begins:
            ends = edges[edges > begin]
            if len(ends):
                paid.append(rewards[begin : ends[0], column].round().sum())
    return np.array(paid)
