"""Atari games by ale-py, as agents of the 100k benchmark see them (Machado et al., 2018; Robine et al., 2023).

A step is four frames with one action: grey, the brighter of the last two, 64 by 64. No sticky actions. An episode is a
whole game, of 27,000 steps at most; up to 30 idle steps begin it, after FIRE where the game has such an action, which
is pressed again after each lost life. For training it may also end with each life (LifeEnds).
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qttdm.common.environments.task_env import RawTask

ENDING = "NoFrameskip-v4"
EPISODE_STEPS = 27_000
FIRE = 1
"""number of the action, where its meaning is FIRE"""


def names() -> list[str]:
    """List the games that ale-py registers, without those observed as memory."""
    _register()
    found = [name.removesuffix(ENDING) for name in gymnasium.registry if name.endswith(ENDING)]
    return sorted(name for name in found if not name.endswith("-ram"))


def make(name: str) -> RawTask:
    """Make a game."""
    _register()
    env = gymnasium.make(f"{name}{ENDING}", max_episode_steps=-1, disable_env_checker=True, render_mode="rgb_array")
    return RawTask(AtariFrames(env), EPISODE_STEPS, terminates=True, by_life=LifeEnds)


class AtariFrames(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Skips frames, and shows the rest small and grey: uint8 [size, size]."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], skip: int = 4, size: int = 64, idle: int = 30, fire: bool = True
    ) -> None:
        """idle: most idle frames at the start. fire: press FIRE where there is one."""
        super().__init__(env)
        self.skip, self.size, self.idle = skip, size, idle
        self.ale: Any = env.unwrapped.ale  # type: ignore[attr-defined]
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self.fires = fire and len(meanings) > 1 and meanings[FIRE] == "FIRE"
        height, width = (env.observation_space.shape or ())[:2]
        self.observation_space = spaces.Box(0, 255, (size, size), np.uint8)
        self._frames = np.zeros((2, height, width), np.uint8)
        self._lives = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game: FIRE, then a random number of idle frames."""
        _, info = self.env.reset(seed=seed, options=options)
        idle = int(self.np_random.integers(self.idle + 1)) if self.idle else 0
        for action in [FIRE] * self.fires + [0] * idle:
            *_, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                _, info = self.env.reset(options=options)
        self._lives = self.ale.lives()
        self._frames[1] = 0
        self.ale.getScreenGrayscale(self._frames[0])
        return self._shown(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action for all frames of a step; after a lost life FIRE comes first."""
        if self.fires and 0 < self.ale.lives() < self._lives:
            action = FIRE
        self._lives = self.ale.lives()
        total, terminated, truncated = 0.0, False, False
        info: dict[str, Any] = {}
        for frame in range(self.skip):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
            if (place := self.skip - 1 - frame) < 2:
                self.ale.getScreenGrayscale(self._frames[place])
        return self._shown(), total, terminated, truncated, info

    def _shown(self) -> NDArray[np.uint8]:
        """Resize the brighter of the newest two frames: games draw some things in every other frame only."""
        rows, columns = (area_weights(self.size, length) for length in self._frames.shape[1:])
        small = rows @ self._frames.max(axis=0).astype(np.float32) @ columns.T
        return np.rint(small).astype(np.uint8)


class LifeEnds(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends an episode when a life is lost; the next one goes on in the same game, from the frame that ended the last.

    Around AtariFrames. A reset after anything else begins another game.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._ale: Any = env.unwrapped.ale  # type: ignore[attr-defined]
        self._lives, self._goes_on, self._shown = 0, False, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Go on with the next life, whatever the seed, or begin a game."""
        info: dict[str, Any] = {}
        if not self._goes_on:
            self._shown, info = self.env.reset(seed=seed, options=options)
        self._lives, self._goes_on = self._ale.lives(), False
        return self._shown, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; `terminated` when a life is lost by it."""
        self._shown, reward, terminated, truncated, info = self.env.step(action)
        self._goes_on = not (terminated or truncated) and 0 < self._ale.lives() < self._lives
        return self._shown, float(reward), terminated or self._goes_on, truncated, info


@functools.cache
def area_weights(size: int, length: int) -> NDArray[np.float32]:
    """Return the share of each of `length` pixels in `size` larger ones, [size, length], rows of sum 1."""
    edges = np.arange(size + 1) * length / size
    pixels = np.arange(length)
    low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    return (np.maximum(high - low, 0.0) * size / length).astype(np.float32)


def _register() -> None:
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    if f"Pong{ENDING}" not in gymnasium.registry:
        gymnasium.register_envs(ale_py)
