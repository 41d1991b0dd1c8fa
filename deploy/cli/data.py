"""`qttdm collect` and `qttdm data`: make data sets of a run's episodes, and look at what is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qttdm.common.config import ConfigError
from qttdm.common.extras import need
from qttdm.deploy.cli.options import Choice, Count, RunPath


def collect(
    *,
    out: str,
    kind: Literal["random", "medium", "expert", "medium-replay", "medium-expert"],
    run: RunPath | None = None,
    episodes: Count | None = None,
    references: Count = 100,
    choice: Choice = Choice(),
) -> None:
    """Write a run's own episodes as a Minari data set: docs/offline.md.

    Args:
        out: id of the data set, NAME-v0 or GROUP/NAME-v0
        kind: who acts: random actions, the newest checkpoint (expert), the first good one (medium), both, or what the
            run had collected until the first good one (medium-replay)
        run: a run; random actions need none
        episodes: how many; default: 100, of medium-replay all
        references: episodes of random actions and of the expert to measure both by
    """
    need("offline", "qttdm collect")
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
