"""`python -m qttdm.deploy.bench.bodies`: physics steps a second of gaits collected for bodies, and of bare MuJoCo."""

from __future__ import annotations

import os
import time

import mujoco
import numpy as np
from mujoco import rollout

from qttdm.common.environments import bodies as universe
from qttdm.common.environments.config import EnvConfig
from qttdm.deploy.bench.timing import in_turns
from qttdm.deploy.bodies import gaits
from qttdm.deploy.bodies.collect import Bodies, gather, names

BODIES, EPISODES, ROUNDS = 3, 6, 2


def steps_of_gathering(bodies: Bodies, decisions: int) -> int:
    """Count the physics steps of one body: the search, the episodes, and the two that measure it."""
    each = bodies.env.action_repeat * universe.SUBSTEPS
    searched = round(gaits.SEARCH_SECONDS / universe.PHYSICS_SECONDS)
    tried = gaits.RANDOM + gaits.ROUNDS * gaits.NEAR
    drops = (1 + bodies.episodes) * round(universe.DROP_SECONDS / universe.PHYSICS_SECONDS)
    return tried * searched + 3 * bodies.episodes * decisions * each + drops


def main() -> None:
    """Print both rates, and their ratio, on all cores."""
    bodies = Bodies(EnvConfig(action_repeat=4), 0, EPISODES, 0.5)
    tasks, threads = names("chain", BODIES, 0, None), os.cpu_count() or 1
    decisions = universe.EPISODE_STEPS // bodies.env.action_repeat

    def ours() -> float:
        began = time.perf_counter()
        for task in tasks:
            gather(task, bodies, threads)
        return BODIES * steps_of_gathering(bodies, decisions) / (time.perf_counter() - began)

    def bare() -> float:
        """As many sequences as a search begins with, of controls of the same kind, and nothing else."""
        rng, steps, seconds = np.random.default_rng(0), round(gaits.SEARCH_SECONDS / universe.PHYSICS_SECONDS), 0.0
        for task in tasks:
            family, _, seed = task.removeprefix("universe/").rpartition("-")
            model = mujoco.MjModel.from_xml_string(universe.mjcf(family, int(seed)))
            data = [mujoco.MjData(model) for _ in range(threads)]
            state = np.empty(mujoco.mj_stateSize(model, gaits.FULL))
            mujoco.mj_getState(model, data[0], state, gaits.FULL)
            drawn = rng.random((3, gaits.RANDOM, model.nu))
            times = np.arange(steps, dtype=np.float64) * universe.PHYSICS_SECONDS
            gait = gaits.Gaits(drawn[0], drawn[1], drawn[2], rng.random(gaits.RANDOM))
            controls = gait.actions(times).astype(np.float64)
            with rollout.Rollout(nthread=threads if threads > 1 else 0) as run:
                began = time.perf_counter()
                run.rollout(model, data, np.tile(state, (gaits.RANDOM, 1)), controls)
                seconds += time.perf_counter() - began
        return BODIES * gaits.RANDOM * steps / seconds

    speed = in_turns(ours, bare, ROUNDS)
    print(f"{BODIES} bodies, {threads} threads, thousand physics steps/s: {speed.ours / 1e3:.0f} of gaits collected,")
    print(f"{speed.other / 1e3:.0f} of mujoco.rollout alone: {speed.ratio:.2f}")


if __name__ == "__main__":
    main()
