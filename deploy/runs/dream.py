"""What a run's world model expects of an episode that it has seen the beginning of: `qttdm dream`.

evaluation episode --its first steps--> world model --its actions, drawn latents and rewards--> imagined observations

A run on one machine draws the same for TensorBoard, of each of its evaluations.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from qttdm.common.checkpoint import load_checkpoint
from qttdm.common.config import ConfigError
from qttdm.common.contracts import DreamingAgent, Learner
from qttdm.common.episode import Episode
from qttdm.common.models.latent import Decoder, Encoder, modes
from qttdm.common.models.world_model import Dynamics, Seen
from qttdm.common.tensors import under
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.dream import Dream
from qttdm.learner.parts.imagination import imagine
from qttdm.learner.parts.world_model import WorldModelLearner

Networks = tuple[Encoder, Dynamics, Decoder]
STEPS = 15
"""imagined, unless another number is asked for"""


def imagine_episode(agent: TrainedAgent, steps: int, at: int | None) -> Dream:
    """Imagine how the first evaluation episode goes on after step `at`. ConfigError if the run has no world model."""
    world = world_model(agent)
    episode = agent.evaluate(1).episodes[0]
    start, length = start_in(episode, world.dynamics) if at is None else at, episode.decisions
    if not 0 < start < length:
        raise ConfigError(f"--at {start}: the episode has {length} steps; want from 1 to {length - 1}")
    networks = world.network, world.dynamics, world.decoder
    return imagine_on(networks, episode, agent.data.stack, agent.config.seed, start, steps)


def imagine_with(learner: Learner, episode: Episode, stack: int, seed: int) -> Dream | None:
    """Imagine, as a learner's world model is now, how an episode goes on; None if it ends at once.

    With copies on the CPU: nothing that the learner draws or computes becomes another.
    """
    world = next(part for part in learner.parts if isinstance(part, WorldModelLearner))  # type: ignore[attr-defined]
    start = start_in(episode, world.dynamics)
    if start >= episode.decisions:
        return None
    networks = copy.deepcopy(world.network), copy.deepcopy(world.dynamics), copy.deepcopy(world.decoder)
    return imagine_on(networks, episode, stack, seed, start, STEPS)


def start_in(episode: Episode, dynamics: Dynamics) -> int:
    """Choose the step after which nothing more is shown: the window's length, or the middle of a shorter episode."""
    return min(dynamics.config.window, episode.decisions // 2) or 1


def imagine_on(networks: Networks, episode: Episode, stack: int, seed: int, start: int, steps: int) -> Dream:
    """Imagine how an episode goes on after step `start`, by its own actions; moves the networks to the CPU."""
    encoder, dynamics, decoder = networks
    for network in networks:
        network.cpu().eval()
    begin, end = max(0, start - dynamics.config.window), min(episode.decisions, start + steps)
    observations = torch.from_numpy(stacked(episode.observations[: start + 1], stack)[begin:])
    generator = torch.Generator().manual_seed(seed)
    horizon, variables = end - start, encoder.config.variables
    with torch.no_grad():
        latents = modes(encoder(observations)).flatten(-2)[None]  # [1, L+1, Z]
        rewards = torch.from_numpy(episode.rewards[begin:start])[None]
        _, cache = dynamics(latents[:, :-1], torch.from_numpy(episode.actions[begin:start])[None], rewards)
        seen = Seen(latents, rewards, torch.ones(latents.shape[:2], dtype=torch.bool), cache)
        noise = {
            "starts": torch.tensor([start - begin]),
            "restarts": torch.zeros(horizon, 1, dtype=torch.int64),  # none: nothing is cut
            "latents": torch.rand(horizon, 1, variables, generator=generator),
            "rewards": torch.rand(horizon, 1, generator=generator),
            "actions": torch.from_numpy(episode.actions[start:end])[:, None],
        }
        imagined = imagine(dynamics, seen, lambda latents, actions: actions, noise, cut_below=0.0)
        decoded = decoder(torch.cat([imagined.latents[:1], imagined.next_latents])[:, 0])
        if encoder.scale is not None:
            shown = encoder.scale.undo(decoded).numpy()
        else:
            channels = episode.observations.shape[-1]
            shown = (255.0 * decoded[..., -channels:]).clamp(0, 255).round().to(torch.uint8).numpy()
    real = episode.observations[start : end + 1]
    return Dream(start, real, shown, episode.rewards[start:end], imagined.rewards[:, 0].numpy())


def world_model(agent: TrainedAgent) -> WorldModelLearner:
    """Load the world model of the agent's checkpoint, on the CPU. ConfigError if there is none."""
    made = agent.config.make_agent(agent.spec)
    if not isinstance(made, DreamingAgent):
        raise ConfigError(f"agent={agent.config.agent} has no world model that decodes; want a run of twm")
    world: WorldModelLearner = made.world_model(torch.device("cpu"))
    saved = under(world.name, load_checkpoint(agent.loaded, blobs=False).tensors)
    if not any(name.startswith("decoder/") for name in saved):
        raise ConfigError(f"{agent.run_dir.path}: holds only what acting needs; want the run that it was made of")
    world.load_state(saved)
    return world


def stacked(images: np.ndarray, stack: int) -> np.ndarray:
    """Put the newest `stack` images of each step side by side in the channels, as replay does: [T, ..]."""
    steps = np.arange(len(images))
    return np.concatenate([images[np.maximum(steps - back, 0)] for back in range(stack - 1, -1, -1)], axis=-1)
