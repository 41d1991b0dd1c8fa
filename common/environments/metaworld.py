"""Meta-World: its 50 tasks, each with its goal observed and drawn anew at every reset."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import metaworld
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from qttdm.common.environments.task_env import RawTask

EPISODE_STEPS = 200
"""As in the papers compared with (100 decisions of 2 steps); the library's own limit is 500."""

SUFFIX = "-v3"

Array = NDArray[np.float64]


def names() -> list[str]:
    """List the 50 tasks, without the library's version suffix."""
    return [name.removesuffix(SUFFIX) for name in metaworld.ALL_V3_ENVIRONMENTS]


def make(name: str) -> RawTask:
    """Make one task; `name` is one of `names()`."""
    env_class = metaworld.ALL_V3_ENVIRONMENTS[name + SUFFIX]
    env = env_class(reward_function_version="v2", render_mode="rgb_array", camera_name="corner2", height=240, width=320)
    # The library's own ways in (benchmarks, set_task) freeze 50 goals at construction. These switches are what they
    # set, for a goal drawn from the environment's own generator at each reset, and shown in the observation.
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._partially_observable = False
    env._set_task_called = True
    del env.sawyer_observation_space  # cached when the goal was still hidden; steps clip the goal to it
    env.observation_space = env.sawyer_observation_space
    env.max_path_length = sys.maxsize  # the time limit is not the library's
    return RawTask(MetaworldEnv(env), EPISODE_STEPS, terminates=False)


class MetaworldEnv(gymnasium.Wrapper[Array, Array, Array, Array]):
    """Honours `reset(seed=...)`, which the library ignores, and reports success as a number."""

    env: SawyerXYZEnv

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode with a new goal; `seed` reseeds this goal and all that follow."""
        if seed is not None:
            self.env.seed(seed)
        return self.env.reset()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Advance one control step; `info["success"]` is 1.0 while the goal is met, else 0.0."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), terminated, truncated, {**info, "success": float(info["success"])}

    def render(self) -> NDArray[np.uint8]:
        """Draw the corner camera's view, uint8 [240, 320, 3]; that camera hangs upside down, hence the half turn."""
        frame = self.env.render()
        assert isinstance(frame, np.ndarray), frame
        return np.rot90(frame, 2).copy()
