"""The DeepMind Control suite: every task, under the name DOMAIN-TASK."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from dm_control import suite
from dm_control.rl import control
from gymnasium import spaces
from numpy.typing import NDArray

from qttdm.common.environments.task_env import RawTask

# dm_control 1.0.28's quadruped calls np.in1d, which NumPy 2.4 removed. Goes when the pinned dm_control no longer does.
if not hasattr(np, "in1d"):
    np.in1d = np.isin  # type: ignore[attr-defined]

EPISODE_STEPS = 1000
"""Every task's own limit is 1000 control steps, except lqr's, which has none."""

UNLIMITED = 1e9
"""dm_control reports +-1e10 for an actuator without limits (only lqr has any); [-1, 1] is sent to those as it is."""

FRAME = {"height": 240, "width": 320, "camera_id": 0}


def names() -> list[str]:
    """Every DOMAIN-TASK of the suite, such as ball_in_cup-catch."""
    return list(_tasks())


def make(name: str) -> RawTask:
    """One task; `name` is one of `names()`."""
    domain, task = _tasks()[name]
    # A fixed `random` fixes what a task draws as it is built (lqr's springs): every worker must get the same system.
    # An infinite time limit leaves only the task's own endings; Gymnasium's TimeLimit adds the other kind.
    kwargs = {"random": 0, "time_limit": float("inf")}
    env = suite.load(domain, task, task_kwargs=kwargs, environment_kwargs={"flat_observation": True})
    terminates = type(env.task).get_termination is not control.Task.get_termination
    return RawTask(DmcEnv(env), EPISODE_STEPS, terminates=terminates, has_success=False)


class DmcEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """A dm_control environment with flat observations, in Gymnasium's conventions."""

    def __init__(self, env: control.Environment) -> None:
        self._env = env
        self.metadata = {**self.metadata, "render_fps": round(1 / env.control_timestep())}
        shape = env.observation_spec()[control.FLAT_OBSERVATION_KEY].shape
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float64)
        action = env.action_spec()
        limited = np.abs([action.minimum, action.maximum]).max(axis=0) < UNLIMITED  # [N]
        low, high = np.where(limited, action.minimum, -1.0), np.where(limited, action.maximum, 1.0)
        self.action_space = spaces.Box(low, high, dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; `seed` reseeds everything that the task draws from then on."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._env.task.random.seed(seed)
        return self._env.reset().observation[control.FLAT_OBSERVATION_KEY], {}

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Advance one control step; terminated only where dm_control says the future is worth nothing (discount 0)."""
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0.0
        observation = step.observation[control.FLAT_OBSERVATION_KEY]
        return observation, float(step.reward), terminated, step.last() and not terminated, {}

    def render(self) -> NDArray[np.uint8]:
        """The first camera's view, uint8 [240, 320, 3]."""
        return self._env.physics.render(**FRAME)

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()


def _tasks() -> dict[str, tuple[str, str]]:
    return {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}
