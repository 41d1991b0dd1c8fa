"""The DeepMind Control suite with other bodies: lengths, masses and gears of a task drawn anew for each seed.

    dmc-random/cartpole-swingup-7 = dmc/cartpole-swingup, its XML scaled by the draws of seed 7

Each body of the model has factors of its own for length and mass, each actuator one for its gear. The task, its reward
and what it draws for an episode stay as they are.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import mujoco
import numpy as np
from dm_control import suite

from qttdm.common.environments import dmc
from qttdm.common.environments.dmc import DmcEnv, drawn_places
from qttdm.common.environments.task_env import RawTask

LENGTHS, MASSES, GEARS = (0.7, 1.4), (0.5, 2.0), (0.7, 1.4)
"""ranges of the factors, drawn uniformly in their logarithm"""
FIXED = ("dog", "humanoid_CMU", "lqr", "manipulator", "quadruped", "stacker")
"""domains whose models hold meshes or terrain, or whose parts have to fit each other"""


def names() -> list[str]:
    """List the tasks; a body is TASK-SEED."""
    return [f"{domain}-{task}" for domain, task in suite.ALL_TASKS if domain not in FIXED]


def make(name: str) -> RawTask:
    """Make one task with one body; `name` is TASK-SEED."""
    task, _, seed = name.rpartition("-")
    env, terminates = dmc.load(task)
    env.physics.reload_from_xml_string(scaled(xml_of(env.physics.model.ptr), int(seed)))
    made = DmcEnv(env, partial(drawn_places, task))
    return RawTask(
        made,
        dmc.EPISODE_STEPS,
        terminates,
        simulator_state=made.state_size(),
        observation_parts=made.parts(),
    )


def xml_of(model: mujoco.MjModel) -> str:
    """Return the XML that this model was made from; it must be the last that was."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        mujoco.mj_saveLastXML(str(path), model)
        return path.read_text()


def scaled(xml: str, seed: int) -> str:
    """Scale a model's bodies and gears: a function of its arguments alone.

    A body's length is where its parts are and how long they are, not how thick: what hangs at its end moves along.
    """
    spec, rng = mujoco.MjSpec.from_string(xml), np.random.default_rng(seed)

    def factor(bounds: tuple[float, float]) -> float:
        return float(np.exp(rng.uniform(*np.log(bounds))))

    for body in spec.bodies[1:]:  # the first is the world
        length, mass = factor(LENGTHS), factor(MASSES)
        for part in (*body.geoms, *body.sites, *body.bodies, *body.joints):
            part.pos = np.asarray(part.pos) * length
        for part in (*body.geoms, *body.sites):
            part.fromto = np.asarray(part.fromto) * length
            if part.type in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER):
                part.size = np.asarray(part.size) * (1, length, 1)
        for geom in body.geoms:
            geom.mass *= mass
            geom.density *= mass
    for actuator in spec.actuators:
        actuator.gear = np.asarray(actuator.gear) * factor(GEARS)
    spec.compile()  # or it cannot be written
    return str(spec.to_xml())
