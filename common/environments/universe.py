"""The walkers of common/environments/bodies.py as tasks, universe/FAMILY-SEED: to move along x at 1 m/s."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from dm_control import mujoco
from dm_control.rl import control
from numpy.typing import NDArray

from qttdm.common.environments.bodies import (
    CONTROL_SECONDS,
    DROP_SECONDS,
    EPISODE_STEPS,
    FAMILIES,
    PHYSICS_SECONDS,
    SPREAD,
    mjcf,
    observe,
    reward_of,
)
from qttdm.common.environments.dmc import DmcEnv
from qttdm.common.environments.task_env import RawTask


def names() -> list[str]:
    """List the families; a body is FAMILY-SEED."""
    return list(FAMILIES)


def make(name: str) -> RawTask:
    """Make one body's task; `name` is FAMILY-SEED."""
    family, _, seed = name.rpartition("-")
    physics = mujoco.Physics.from_xml_string(mjcf(family, int(seed)))
    env = control.Environment(physics, Run(), control_timestep=CONTROL_SECONDS, flat_observation=True)
    made = DmcEnv(env, dict)  # nothing of the model is drawn
    return RawTask(
        made,
        EPISODE_STEPS,
        terminates=False,
        simulator_state=made.state_size(),
        observation_parts=made.parts(),
    )


class Run(control.Task):
    """Move along x at SPEED. An episode begins with the body dropped, its joints nearly straight."""

    def __init__(self) -> None:
        self.random = np.random.RandomState(0)

    def initialize_episode(self, physics: Any) -> None:
        """Bend the joints a little, and drop the body."""
        physics.data.qpos[7:] = self.random.uniform(-SPREAD, SPREAD, physics.model.nu)
        for _ in range(round(DROP_SECONDS / PHYSICS_SECONDS)):
            physics.step()
        physics.data.time = 0.0

    def before_step(self, action: NDArray[np.float64], physics: Any) -> None:
        """Apply torques."""
        physics.set_control(action)

    def action_spec(self, physics: Any) -> Any:
        """Return the box from -1 to 1."""
        return mujoco.action_spec(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, NDArray[np.float64]]:
        """As `observe`."""
        return OrderedDict(observe(physics.data.qpos.copy(), physics.data.qvel.copy()))

    def get_reward(self, physics: Any) -> float:
        """Reward the velocity of the whole body's centre of mass."""
        return float(reward_of(physics.named.data.sensordata["velocity"][0]))
