"""`qttdm collect --universe`: a data set for each of many bodies, of the gaits that are found for them.

    Bodies --names--> gather (here, or a Ray task each: cluster.py) --Gathered--> $MINARI_DATASETS_PATH/OUT/chain-7-v0

A body whose data set is there is done: the same command goes on after a stop. A body's episodes depend on the settings
and its name alone, wherever and after whatever they are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from qttdm.common.contracts import TaskSpec
from qttdm.common.environments import bodies as universe
from qttdm.common.environments.config import EnvConfig
from qttdm.common.episode import Episode
from qttdm.common.seeding import derive_seed
from qttdm.deploy.bodies.gaits import Body, search
from qttdm.deploy.screens.rows import Row, View
from qttdm.replay.datasets import is_written, write_dataset

NOISE_STD = 0.3
"""of actions, in episodes that have noise"""


@dataclass(frozen=True)
class Bodies:
    """What is to be collected of each body."""

    env: EnvConfig
    seed: int
    """of the search, the starts and the noise"""
    episodes: int
    noise: float
    """share of the episodes whose actions are the gait's and noise"""


@dataclass(frozen=True)
class Gathered:
    """What a body gave."""

    task: str
    spec: TaskSpec
    episodes: Sequence[Episode]
    still: float
    """return of doing nothing"""
    gait: float
    """return of the gait without noise; both are means over the starts of all episodes"""


Gathering = Callable[[Sequence[str], Bodies], Iterator[Gathered]]
"""makes what these bodies give, in any order"""


def names(family: str, bodies: int, first: int, most_joints: int | None) -> list[str]:
    """Name so many bodies, from that seed on, of at most so many joints."""
    found: list[str] = []
    for seed in count(first):
        if most_joints is None or len(universe.body(family, seed)) <= most_joints:
            found.append(f"universe/{family}-{seed}")
        if len(found) == bodies:
            return found
    raise AssertionError


def gather(task: str, bodies: Bodies, threads: int) -> Gathered:
    """Search a gait for one body, and act by it."""
    body = Body(task, bodies.env, threads)
    spec, decisions = body.spec, body.spec.episode_decisions
    gait = search(body, np.random.default_rng(derive_seed(bodies.seed, "gait", task)))
    rng = np.random.default_rng(derive_seed(bodies.seed, "noise", task))
    starts = body.starts([derive_seed(bodies.seed, "start", task, number) for number in range(bodies.episodes)])
    clean = np.repeat(gait.actions(body.times(decisions)), bodies.episodes, axis=0)  # [B, T, N]
    noisy = np.arange(bodies.episodes) < round(bodies.noise * bodies.episodes)
    drawn = NOISE_STD * rng.normal(size=clean.shape) * noisy[:, None, None]
    actions = np.clip(clean + drawn, -1, 1).astype(np.float32)
    observations, rewards = body.roll(starts, actions)
    gait_return, still = (
        float(body.roll(starts, acted)[1].sum(axis=1).mean()) for acted in (clean, np.zeros_like(clean))
    )
    episodes = [
        Episode(o, a, r, terminated=False, env_steps=spec.episode_steps, truncated=True)
        for o, a, r in zip(observations, actions, rewards, strict=True)
    ]
    return Gathered(task, spec, episodes, still, gait_return)


def gather_here(tasks: Sequence[str], bodies: Bodies, threads: int) -> Iterator[Gathered]:
    """Gather one body after the other, with all threads."""
    for task in tasks:
        yield gather(task, bodies, threads)


def dataset_of(out: str, task: str) -> str:
    """Return the id of a body's data set."""
    return f"{out}/{task.removeprefix('universe/')}-v0"


def collect_bodies(
    out: str,
    tasks: Sequence[str],
    bodies: Bodies,
    gathering: Gathering,
    show: Callable[[View], object],
    stopped: Callable[[], bool],
) -> int:
    """Write the data sets that are missing; returns how many of all there are in the end. DiskError."""
    missing = [task for task in tasks if not is_written(dataset_of(out, task))]
    done, began, decisions = len(tasks) - len(missing), time.monotonic(), 0
    newest = ""

    def report(state: str, earned: float | None = None) -> None:
        seconds, made = time.monotonic() - began, done - (len(tasks) - len(missing))
        left = seconds / made * (len(tasks) - done) if made else None
        rate = decisions / seconds if made else None
        row = Row(bodies.seed, state, done, len(tasks), left, earned, None, None, rate, unit="bodies", detail=newest)
        show(View(f"{out}: gaits of bodies", [row]))

    report("searching")
    for gathered in gathering(missing, bodies) if missing else ():
        references = {"random": gathered.still, "expert": gathered.gait}
        about = {"kind": "gait", "universe": universe.VERSION, "seed": bodies.seed, "env": bodies.env.model_dump()}
        about |= {"noise": bodies.noise, "measured_by": "doing nothing, and the gait without noise"}
        name = dataset_of(out, gathered.task)
        write_dataset(name, gathered.episodes, gathered.spec, references, **about)
        done += 1
        decisions += sum(episode.decisions for episode in gathered.episodes)
        newest = f"{name}: {gathered.spec.action_dim} joints, gait {gathered.gait:.4g}, still {gathered.still:.4g}"
        report("searching", gathered.gait)
        if stopped():
            break
    report("finished" if done == len(tasks) else "stopped")
    return done
