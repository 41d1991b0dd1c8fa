"""MinAtar (Young and Tian, 2019): five Atari games on grids of 10 by 10, a channel for each kind of object."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from qttdm.common.environments.images import coloured
from qttdm.common.environments.task_env import RawTask

GAMES = {
    "asterix": "Asterix",
    "breakout": "Breakout",
    "freeway": "Freeway",
    "seaquest": "Seaquest",
    "space-invaders": "SpaceInvaders",
}
EPISODE_STEPS = 5_000
"""ours: most games have no limit, and a good player never loses"""
PIXELS = 24
"""a side of a cell in a frame"""


def names() -> list[str]:
    """List the five games."""
    return list(GAMES)


def make(name: str) -> RawTask:
    """Make a game with its useful actions alone, sticky actions and rising difficulty as they come by default."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of packages for a window of its own
    try:
        import minatar.gym
    finally:
        logger.setLevel(before)
    registered = f"MinAtar/{GAMES[name]}-v1"
    if registered not in gymnasium.registry:
        minatar.gym.register_envs()
    return RawTask(Coloured(gymnasium.make(registered, disable_env_checker=True)), EPISODE_STEPS, terminates=True)


class Coloured(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Draws frames: MinAtar's own way needs seaborn and a window."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._shown: NDArray[np.bool_] = np.zeros(env.observation_space.shape or (), np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game."""
        self._shown, info = self.env.reset(seed=seed, options=options)
        return self._shown, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        self._shown, reward, terminated, truncated, info = self.env.step(action)
        return self._shown, float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """Draw the grid, uint8 [240, 240, 3]: each kind of object has a colour."""
        frame = coloured(self._shown.astype(np.uint8) * np.uint8(255))
        return frame.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
