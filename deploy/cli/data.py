"""`qttdm collect` and `qttdm data`: make data sets of a run's episodes, and look at what is in one."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from qttdm.common.config import ConfigError
from qttdm.common.extras import need
from qttdm.deploy.cli.options import Choice, Count, RunPath, Seed
from qttdm.deploy.cluster.auth import choose_mode
from qttdm.deploy.runs.stopping import stopping


def collect(
    *,
    out: str,
    kind: Literal["random", "medium", "expert", "medium-replay", "medium-expert"] | None = None,
    run: RunPath | None = None,
    universe: Literal["line", "chain", "bush", "tree"] | None = None,
    bodies: Count = 64,
    first: Seed = 0,
    most_joints: Annotated[Count | None, Parameter(validator=Number(gte=4))] = None,
    noise: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.5,
    cluster: Annotated[bool, Parameter(help="on the Ray cluster instead, each body on one of its CPUs")] = False,
    episodes: Count | None = None,
    references: Count = 100,
    choice: Choice = Choice(),
) -> None:
    """Write a run's own episodes as a Minari data set: docs/offline.md. Or gaits of many bodies, a data set each.

    Args:
        out: id of the data set, NAME-v0 or GROUP/NAME-v0; of many bodies the group they are in
        kind: who acts: random actions, the newest checkpoint (expert), the first good one (medium), both, or what the
            run had collected until the first good one (medium-replay)
        run: a run; random actions need none
        universe: family of bodies to search gaits for; the same command goes on after a stop
        bodies: how many
        first: seed of the first
        most_joints: leave out bodies that have more
        noise: share of a body's episodes in which noise is added to the gait
        episodes: how many; default: 100, of medium-replay all, of each body 6
        references: episodes of random actions and of the expert to measure both by
    """
    need("offline", "qttdm collect")
    if universe is not None:
        for option, given in (("kind", kind), ("run", run), ("agent", choice.agent), ("task", choice.task)):
            if given is not None:
                raise ConfigError(f"--{option}: has no effect with --universe; leave out one of the two")
        _collect_bodies(out, universe, bodies, first, most_joints, noise, cluster, episodes or 6, choice)
        return
    if kind is None:
        raise ConfigError("--kind: want random, medium, expert, medium-replay or medium-expert; or --universe FAMILY")
    from qttdm.deploy.runs import collect as runs
    from qttdm.deploy.runs.acting import ActingAgent
    from qttdm.deploy.runs.trained import TrainedAgent

    agent: ActingAgent
    if run is None:
        agent = ActingAgent(choice.load())
    else:
        for option in ("preset", "agent"):
            if getattr(choice, option) is not None:
                raise ConfigError(f"--{option}: {run} has its own; leave out one of the two")
        agent = TrainedAgent(run, choice.set, choice.planner)
        if choice.task not in (None, agent.config.task):
            raise ConfigError(f"--task {choice.task}: {run} is of {agent.config.task}; leave out one of the two")
    print(runs.collect(agent, kind, out, episodes, references, lambda line: print(line, flush=True)))


def _collect_bodies(
    out: str,
    family: str,
    bodies: int,
    first: int,
    most_joints: int | None,
    noise: float,
    on_cluster: bool,
    episodes: int,
    choice: Choice,
) -> None:
    """Collect gaits. ConfigError before anything is written."""
    need("dmc", "--universe")
    from qttdm.common.environments.make import make_env
    from qttdm.deploy.bodies.collect import Bodies, Gathering, collect_bodies, dataset_of, gather_here, names
    from qttdm.deploy.screens.display import Display
    from qttdm.replay.datasets import check_id

    check_id(dataset_of(out, f"universe/{family}-{first}"))
    tasks = names(family, bodies, first, most_joints)
    config = replace(choice, task=tasks[0]).load()
    make_env(tasks[0], config.env).close()
    gathering: Gathering = partial(gather_here, threads=os.cpu_count() or 1)
    if on_cluster:
        choose_mode()
        from qttdm.deploy.bodies.cluster import gather_on_cluster
        from qttdm.deploy.cluster.preflight import connect

        connect()
        gathering = gather_on_cluster
    with stopping() as stopped, Display() as display:
        wanted = Bodies(config.env, config.seed, episodes, noise)
        done = collect_bodies(out, tasks, wanted, gathering, display.show, stopped)
    print(f"{out}: {done} of {bodies} bodies" + ("" if done == bodies else "; go on with the same command"))


def data(name: str, /, *, out: Path | None = None) -> None:
    """Show what is in a data set: returns, lengths, ends, coverage of states and actions.

    Args:
        name: Minari's id, or a folder
        out: draw returns and states too, as this png
    """
    from qttdm.deploy.screens.data import describe, draw, survey
    from qttdm.replay.datasets import open_dataset

    dataset = open_dataset(name)
    found = survey(dataset)
    print(*describe(dataset, found), sep="\n")
    if out is not None:
        draw(dataset, found, out)
        print(f"picture: {out}")
