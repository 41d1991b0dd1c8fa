"""The one environment the agent sees: flat observations, actions in [-1, 1], repeated actions, honest endings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qttdm.common.contracts import ObservationPart, TaskSpec
from qttdm.common.environments.rendering import RenderError, gl_error

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RawTask:
    """What a family hands over: the library's environment and what only the family knows about it."""

    env: gymnasium.Env[Any, Any]
    episode_steps: int | None
    """The task's own time limit in simulator steps, which `env` itself does not apply; None if it has none."""
    terminates: bool
    simulator_state: int = 0
    """As TaskSpec has it."""
    observation_parts: tuple[ObservationPart, ...] = ()
    """As TaskSpec has it; a Dict space's are found without."""
    by_life: Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]] | None = None
    """Wraps `env` so that an episode ends with a life; None: the task has no lives."""


class TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Repeats each action and reports endings; the outermost wrapper, so the time limit below counts simulator steps.

    Observations are float32 [M] or uint8 images, actions float32 [N] in [-1, 1] or a choice. `reset(seed=s)` makes the
    episode that follows a function of s and the actions alone.
    """

    def __init__(self, env: gymnasium.Env[Array, Array], task_spec: TaskSpec, with_state: bool = False) -> None:
        """with_state: `observe` also gives the simulator's state; task_spec.simulator_state must not be 0."""
        super().__init__(env)
        self.task_spec, self.with_state = task_spec, with_state
        self.action_space = (
            spaces.Box(-1.0, 1.0, (task_spec.action_dim,), np.float32)
            if task_spec.choices is None
            else spaces.Discrete(task_spec.choices)
        )

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Take one decision: action [N] -> (observation [M], summed reward, terminated, truncated, info).

        `info["env_steps"]` is the number of simulator steps taken, fewer than `action_repeat` at an episode's end;
        `info["success"]`, where the task has it, what they said last of it; the rest is the last simulator step's.
        """
        total, steps, terminated, truncated = 0.0, 0, False, False
        success: dict[str, Any] = {}
        while steps < self.task_spec.action_repeat and not (terminated or truncated):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += number(reward)
            for name, flag in (("terminated", terminated), ("truncated", truncated)):
                if type(flag) is not bool and (isinstance(flag, str) or np.ndim(flag)):
                    raise TypeError(f"{name} is {flag!r:.60}, want a bool")
            steps += 1
            if "success" in info:
                success = {"success": info["success"]}
        if terminated and not self.task_spec.terminates:
            terminated, truncated = False, True
        return obs, total, bool(terminated), bool(truncated), {**info, **success, "env_steps": steps}

    def observe(self, observation: Array) -> dict[str, NDArray[Any]]:
        """Return all observations of the current step by name, given what `reset` or `step` returned, [M]."""
        state = {"simulator_state": self.unwrapped.simulator_state()} if self.with_state else {}  # type: ignore[attr-defined]
        return {"observations": observation, **state}

    def render(self) -> NDArray[np.uint8]:
        """Draw the current state as an RGB frame, uint8 [height, width, 3]; RenderError if this machine cannot."""
        try:
            frame = self.env.render()
        except gymnasium.error.Error as error:  # its text is what to do: reset first, or which package to install
            raise RenderError(f"cannot render: {error}") from error
        except NotImplementedError:
            frame = None
        except Exception as error:  # GL, EGL and MuJoCo share no base class for "cannot draw here"
            raise gl_error(error) from error
        if not isinstance(frame, np.ndarray):
            raise RenderError("cannot render: this environment draws no RGB frames")
        return frame


def number(reward: Any) -> float:
    """Return a reward as a number. TypeError, naming it, if it is none."""
    try:
        return float(reward)
    except (TypeError, ValueError):
        raise TypeError(f"the reward is {reward!r:.60}, want a number") from None
