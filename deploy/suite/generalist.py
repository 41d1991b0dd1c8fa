"""`make generalist-suite`: what one dynamics model of many bodies must show, one experiment a function.

    planner      cartpole: noise, its scale, N and K of random shooting, searched in the true simulator
    specialist   cartpole: planning in the model beside the true simulator; error at 25 steps beside an MLP of changes
    three-uses   cartpole: one network says what is earned, acts as the data does, and proposes to a search
    tokens       cartpole: a token for each number beside a token for each state, equal time to learn and to decide
    few-shot     a cartpole with a longer pole than 16 others have: from their model (--from), and from nothing
    zero-shot    chains: planning for bodies that were not in the data, beside imitation by the same weights

Each takes under ten minutes on two cores, by one seed, when the data sets, the planner and the runs that several share
are there; nothing that is there is made again. All plan as `planner` chose. Tables go to runs/generalist-suite/NAME.md;
intervals are 95% percentile-bootstrap. After Schubert et al., 2023.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qttdm.common.environments.config import EnvConfig
from qttdm.common.episode import Episode
from qttdm.deploy.bodies.collect import Bodies, collect_bodies, dataset_of, gather_here, names
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.collect import Kind, collect
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.plot import mean_interval
from qttdm.deploy.suite.experiments import Experiment, Row, cartpole_run, data_root, run_suite, share, trained
from qttdm.deploy.suite.specialist import (
    HEAD,
    IMITATE,
    MEASURES,
    PRESET,
    RUNS,
    Cart,
    acting,
    judge,
    learning,
    planner,
    remembered,
    says,
    specialist,
    three_uses,
    tokens,
)
from qttdm.planner_service.planners.history import remember
from qttdm.planner_service.policies.planning import PlanningPolicy
from qttdm.replay.datasets import open_dataset

SCALED = "dmc-random/cartpole-swingup-"
TARGET = f"{SCALED}35"
"""its pole is 1.34 times as long as the suite's, and 1.86 times as heavy"""
OTHERS = ("dmc/pendulum-swingup", "dmc/cartpole-two_poles")


@dataclass(frozen=True)
class Few:
    """How much is done with many cartpoles."""

    known: Sequence[int] = (*range(4), *range(5, 17))
    """bodies that are known before; their poles are 0.72 to 1.24 times as long as the suite's"""
    logged: int = 10
    """episodes of each, by the agent of the suite's own cartpole, and as many of random actions"""
    shots: Sequence[int] = (1, 3, 10)
    """episodes of the target"""
    updates: int = 1_000
    """on them, of a model that begins with nothing"""
    tuning: int = 300
    """on them, of one that knows the others"""
    depth: int = 12
    """imagined steps after which errors are compared"""


@dataclass(frozen=True)
class Walk:
    """How much is done with chains."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(action_repeat=4, episode_steps=200))
    """episodes of 50 decisions, 5 s"""
    bodies: int = 64
    new: int = 8
    """bodies that are not learned from; as many of the others stand beside them"""
    most_joints: int = 6
    context: int = 8
    """steps of a gait that imitation begins with; with a decision at most the model's window"""
    settings: Mapping[str, Any] = field(default_factory=lambda: {"training.offline_updates": 1_200})
    """what differs from the preset generalist-laptop"""


def few_shot(cart: Cart, few: Few, seeds: Sequence[int]) -> list[Row]:
    """Learn a body by few of its episodes, which the seed draws."""
    data_root()
    for task in (*(f"{SCALED}{seed}" for seed in few.known), *OTHERS):
        name = f"cartpoles/{task.rpartition('/')[2]}"
        logged(cart, task, "random", f"{name}-random-v0", few.logged)
        if task not in OTHERS:
            logged(cart, task, "expert", f"{name}-expert-v0", few.logged)
    own = logged(cart, TARGET, "expert", "target/expert-v0", max(few.shots))
    held_out = open_dataset(logged(cart, TARGET, "expert", "target/held-out-v0", cart.starts, seed=100))
    known = trained(RUNS / "cartpoles", TARGET, 0, "cartpoles", PRESET, **learning(cart))
    rows: list[Row] = [("episodes", "measure", "fine-tuned", "from nothing", "gained", "must show", "holds")]
    for shots in few.shots:
        more: dict[str, dict[str, Any]] = {
            "tuned": {"training.offline_updates": few.tuning, "training.start_from": f"{known.absolute()}"},
            "new": {"training.offline_updates": few.updates},
        }
        tuned, new = (
            judge(
                cart,
                [
                    trained(
                        RUNS / f"{kind}-{shots}-{seed}",
                        TARGET,
                        seed,
                        own,
                        PRESET,
                        **{**learning(cart), "training.dataset_episodes": shots, **settings},
                    )
                    for seed in seeds
                ],
                held_out,
                few.depth,
            )
            for kind, settings in more.items()
        )
        for name, write in MEASURES.items():
            gained = tuned[name] - new[name] if name == "return" else new[name] - tuned[name]
            demanded = name == "return" and shots <= 3
            holds = says(mean_interval(list(gained))[1] > 0) if demanded else ""
            shown = write(tuned[name]), write(new[name]), write(gained)
            rows.append((shots, name, *shown, "> 0" if demanded else "", holds))
    return rows


def logged(cart: Cart, task: str, kind: Kind, name: str, episodes: int, seed: int = 0) -> str:
    """Return a data set of a body, by random actions or by the agent that knows the suite's own cartpole."""
    if not (data_root() / name).exists():
        items = [f"{key}={value}" for key, value in {**cart.env, "seed": seed}.items()]
        agent: ActingAgent
        if task in OTHERS:
            agent = ActingAgent(load_run_config(preset_path("laptop"), items, task=task))
        else:
            agent = TrainedAgent(cartpole_run(), [*items, f"task={task}"])
        collect(agent, kind, name, episodes, 1, print)
    return name


def zero_shot(walk: Walk, seeds: Sequence[int]) -> list[Row]:
    """Act for bodies by a model that has learned from others; 0 is the return of doing nothing, 1 that of the gait."""
    data_root()
    known, new = (names("chain", n, first, walk.most_joints) for n, first in ((walk.bodies, 0), (walk.new, 1000)))
    gather = partial(gather_here, threads=os.cpu_count() or 1)
    for group, tasks, episodes in (("walkers", known, 6), ("new-walkers", new, 2)):
        collect_bodies(group, tasks, Bodies(walk.env, 0, episodes, 0.5), gather, lambda view: None, lambda: False)
    settings = {**{f"env.{key}": value for key, value in walk.env.model_dump().items()}, **walk.settings}
    runs = [trained(RUNS / f"chains-{seed}", new[0], seed, "walkers", PRESET, **settings) for seed in seeds]
    rows: list[Row] = [HEAD]
    for what, group, tasks in (("held out", "new-walkers", new), ("learned from", "walkers", known[: walk.new])):
        found = np.array([normalised(walk, run, dataset_of(group, task), task) for run in runs for task in tasks])
        imitating, planning = found.T
        rows.append((f"bodies {what}, imitation after {walk.context} steps of the gait", share(imitating), "", ""))
        rows.append((f"bodies {what}, planning", share(planning), "", ""))
        more, demanded = planning - imitating, what == "held out"
        holds = says(mean_interval(list(more))[1] > 0) if demanded else ""
        rows.append((f"bodies {what}, difference", share(more), "> 0" if demanded else "", holds))
    return rows


def normalised(walk: Walk, run: Path, name: str, task: str) -> tuple[float, float]:
    """Return what imitation and planning earn on a body, for which the gait is its data set's last episode."""
    dataset = open_dataset(name)
    assert dataset.references is not None
    still, gait = dataset.references["random"], dataset.references["expert"]
    imitating = acting(run, {**IMITATE, "context": walk.context}, f"task={task}")
    *_, last = dataset.episodes()  # the first ones have noise
    prompt(imitating.policy, last)
    returns = (agent.evaluate(1).mean_return for agent in (imitating, acting(run, {}, f"task={task}")))
    of_imitation, of_planning = ((earned - still) / (gait - still) for earned in returns)
    return of_imitation, of_planning


def prompt(policy: Any, episode: Episode) -> None:
    """Begin all episodes of a policy with the last steps of a logged one in their history."""
    assert isinstance(policy, PlanningPolicy)
    planner: Any = policy.planner
    steps, begin = planner.config.context, planner.begin
    seen = torch.from_numpy(episode.observations[-steps - 1 : -1])[None]
    with torch.inference_mode():
        history = remembered(planner.dynamics, seen, torch.from_numpy(episode.actions[-steps:])[None])

    def prompted(*arguments: Any) -> Any:
        carry = begin(*arguments)
        for step in history:
            carry = remember(carry, step)
        return carry

    planner.begin = prompted


def experiments(cart: Cart, few: Few, walk: Walk) -> Mapping[str, Experiment]:
    """Name them, so large."""
    return {
        "planner": partial(planner, cart),
        "specialist": partial(specialist, cart),
        "three-uses": partial(three_uses, cart),
        "tokens": partial(tokens, cart),
        "few-shot": partial(few_shot, cart, few),
        "zero-shot": partial(zero_shot, walk),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments named, or all; returns the exit status."""
    seeds = "default: 1; planner uses none"
    all_of_them = experiments(Cart(), Few(), Walk())
    return run_suite(RUNS, __doc__.splitlines()[0], all_of_them, arguments, ([1], seeds))


if __name__ == "__main__":
    sys.exit(main())
