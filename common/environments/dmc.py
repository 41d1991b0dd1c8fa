"""The DeepMind Control suite: every task, under the name DOMAIN-TASK."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from dm_control import suite
from dm_control.rl import control
from gymnasium import spaces
from numpy.typing import NDArray

from qttdm.common.contracts import ObservationPart
from qttdm.common.environments.task_env import RawTask

# dm_control 1.0.28's quadruped calls np.in1d, which NumPy 2.4 removed. Goes when the pinned dm_control no longer does.
if not hasattr(np, "in1d"):
    np.in1d = np.isin  # type: ignore[attr-defined]

EPISODE_STEPS = 1000
"""Every task's own limit is 1000 control steps, except lqr's, which has none."""

UNLIMITED = 1e9
"""dm_control reports +-1e10 for an actuator without limits (only lqr has any); [-1, 1] is sent to those as it is."""

DRAWS = 4
"""Episodes whose models are compared, to find what a task draws anew for each."""

MOST_STATE = 10_000
"""Numbers of a simulator's state that are worth keeping with every step; quadruped-escape's terrain has 40,000."""

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
"""All that a step of the physics depends on: time, positions, velocities, activations, warm start, forces applied."""

FRAME = {"height": 240, "width": 320, "camera_id": 0}


def names() -> list[str]:
    """List every DOMAIN-TASK of the suite, such as ball_in_cup-catch."""
    return list(_tasks())


def make(name: str) -> RawTask:
    """Make one task; `name` is one of `names()`."""
    env, terminates = load(name)
    made = DmcEnv(env, partial(drawn_places, name))
    return RawTask(
        made,
        EPISODE_STEPS,
        terminates,
        simulator_state=made.state_size(),
        observation_parts=made.parts(),
    )


def load(name: str) -> tuple[control.Environment, bool]:
    """Load one task of the suite; and can its episodes terminate?"""
    domain, task = _tasks()[name]
    # A fixed `random` fixes what a task draws as it is built (lqr's springs): every worker must get the same system.
    # An infinite time limit leaves only the task's own endings; Gymnasium's TimeLimit adds the other kind.
    kwargs = {"random": 0, "time_limit": float("inf")}
    env = suite.load(domain, task, task_kwargs=kwargs, environment_kwargs={"flat_observation": True})
    return env, type(env.task).get_termination is not control.Task.get_termination


class DmcEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """A dm_control environment with flat observations, in Gymnasium's conventions."""

    def __init__(self, env: control.Environment, drawn: Callable[[], dict[str, NDArray[np.int64]]]) -> None:
        """drawn: as `drawn_places`; it is called when a state is first asked for."""
        self._env, self._find_drawn = env, drawn
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

    @property
    def dt(self) -> float:
        """Seconds of one control step, under the name that Gymnasium's environments give it."""
        return float(self._env.control_timestep())

    def parts(self) -> tuple[ObservationPart, ...]:
        """List what the flat observation is made of, in its order."""
        shown = self._env.task.get_observation(self._env.physics)
        # dm_control flattens an OrderedDict as it stands, and any other sorted.
        names = shown if isinstance(shown, OrderedDict) else sorted(shown)
        return tuple(ObservationPart(name, int(np.size(shown[name])), np.shape(shown[name])) for name in names)

    def state_size(self) -> int:
        """Return length of `simulator_state`; 0 if that is too long to keep."""
        size = self._integration_size + sum(index.size for index in self._drawn.values())
        return size if size <= MOST_STATE else 0

    @cached_property
    def _integration_size(self) -> int:
        return int(mujoco.mj_stateSize(self._env.physics.model.ptr, INTEGRATION))

    @cached_property
    def _drawn(self) -> dict[str, NDArray[np.int64]]:
        return self._find_drawn()

    def simulator_state(self) -> NDArray[np.float64]:
        """Return all that the rest of the episode depends on, [S]: the physics' state, then what the task has drawn."""
        physics = self._env.physics
        state = np.empty(self._integration_size)
        mujoco.mj_getState(physics.model.ptr, physics.data.ptr, state, INTEGRATION)
        return np.concatenate([state, *(getattr(physics.model.ptr, n).flat[i] for n, i in self._drawn.items())])

    def set_simulator_state(self, state: NDArray[np.float64]) -> None:
        """Go to a state [S] of any episode of this task; the environment must have been reset once.

        Raises dm_control's PhysicsError for a state that cannot be simulated.
        """
        physics, start = self._env.physics, self._integration_size
        for name, index in self._drawn.items():
            getattr(physics.model.ptr, name).flat[index] = state[start : start + index.size]
            start += index.size
        mujoco.mj_setState(physics.model.ptr, physics.data.ptr, state[: self._integration_size], INTEGRATION)
        with physics.check_invalid_state():  # MuJoCo would go on from another state in silence
            mujoco.mj_step1(physics.model.ptr, physics.data.ptr)  # dm_control steps begin where positions are known
        self._env._reset_next_step = False  # or the step after an ending would reset

    def render(self) -> NDArray[np.uint8]:
        """Draw the first camera's view, uint8 [240, 320, 3]."""
        return self._env.physics.render(**FRAME)

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()


def _tasks() -> dict[str, tuple[str, str]]:
    return {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}


@cache
def drawn_places(name: str) -> dict[str, NDArray[np.int64]]:
    """Find where a task's model, an array by its name, differs between episodes: such as the place of a target.

    Flat indices, found by comparing a few episodes.
    """
    (env, _), models = load(name), []
    for seed in range(DRAWS):
        env.task.random.seed(seed)
        env.reset()
        models.append(_model_arrays(env.physics.model.ptr))
    places = {}
    for array, values in models[0].items():
        same = np.all([np.isclose(values, m[array], rtol=0, atol=0, equal_nan=True) for m in models[1:]], axis=0)
        places[array] = np.flatnonzero(~same)
    return {array: index for array, index in places.items() if index.size}


def _model_arrays(model: mujoco.MjModel) -> dict[str, NDArray[np.floating[Any]]]:
    """Copy a model's arrays of real numbers, flat, but for how things look."""
    names = [name for name in dir(model) if not name.startswith(("_", "light_", "cam_")) and "rgba" not in name]
    arrays = {name: np.asarray(value) for name in names if isinstance(value := getattr(model, name), np.ndarray)}
    return {name: array.flatten() for name, array in arrays.items() if array.dtype.kind == "f"}
