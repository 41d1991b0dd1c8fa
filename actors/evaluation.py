"""Evaluation: the policy without exploration, in its own environments, the same start states every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qttdm.actors.episodes import run_episodes
from qttdm.common.contracts import Policy
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.episode import Episode
from qttdm.common.seeding import derive_seed


@dataclass(frozen=True)
class Evaluation:
    """What some evaluation episodes gave."""

    returns: list[float]
    """undiscounted, one per episode"""
    success: float | None
    """share of episodes that ended in success; None where the task defines none"""
    episodes: list[Episode] = field(default_factory=list, compare=False, repr=False)
    """as they were acted"""

    @property
    def mean_return(self) -> float:
        """Mean over episodes."""
        return float(np.mean(self.returns))


def evaluate(
    envs: Sequence[TaskEnv],
    policy: Policy,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
    attempt: int = 0,
) -> Evaluation:
    """Run one episode in each environment, planned in one batch; the same seed and weights give the same result.

    attempt: others than 0 have other start states, for when a simulator fails in those.
    """
    again = (attempt,) if attempt else ()
    seeds = [derive_seed(seed, "evaluation", i, *again) for i in range(len(envs))]
    episodes = run_episodes(envs, policy, seeds, exploration=0.0, should_stop=should_stop)
    successes = [e.success for e in episodes if e.success is not None]
    success = float(np.mean(successes)) if successes else None
    return Evaluation([e.episode_return for e in episodes], success, episodes)


def film(
    env: TaskEnv, policy: Policy, seed: int, should_stop: Callable[[], bool] = lambda: False
) -> tuple[list[np.ndarray], Episode]:
    """Draw frames uint8 [height, width, 3] of the first evaluation episode, one at its reset and one after each step.

    RenderError if nothing can draw.
    """
    frames: list[np.ndarray] = []
    seeds = [derive_seed(seed, "evaluation", 0)]
    (episode,) = run_episodes([env], policy, seeds, 0.0, should_stop, watch=lambda e: frames.append(e.render()))
    return frames, episode
