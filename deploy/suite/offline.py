"""`make offline-suite`: what learning from logs must show, one experiment a function, each under ten minutes.

    search      cartpole: wider search, more return; with shuffled predictions no more than imitation
    tokens      cartpole, medium-expert: quantile bins beside uniform ones
    goals       four rooms: goals given while it acts
    mazes       four rooms, a reward at one point: TT(+Q) beside its own IQL and the search without it
    open-loop   cartpole: error of 50 imagined steps, beside a network that predicts one step (agent mlp)

A run or a data set that is there is not made again. Tables go to runs/offline-suite/NAME.md; intervals are 95%
percentile-bootstrap over episodes (open-loop: over starts in logged episodes).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.make import LOGS
from qttdm.common.episode import Episode
from qttdm.common.models.sequence_model import Outcome
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.suite.compare_models import compare, rows_of
from qttdm.deploy.suite.experiments import (
    CART,
    REPEAT,
    Experiment,
    Row,
    cartpole,
    data_root,
    head,
    mean,
    run_suite,
    share,
    trained,
)
from qttdm.deploy.suite.four_rooms import DECISIONS, moved, near, passed_through, random_point, walks
from qttdm.planner_service.planners.beam_search import BeamSearch
from qttdm.planner_service.policies.planning import PlanningPolicy
from qttdm.replay.datasets import open_dataset, write_dataset

RUNS = Path("runs/offline-suite")
TT = "trajectory-transformer"
GREEDY = {"mode": "imitate", "context": 0, "horizon": 1, "beams": 1}
IMITATE = (f"{TT}.planner.mode=imitate", f"{TT}.planner.beams=1", f"{TT}.planner.horizon=1")
ROOMS = TaskSpec(obs_dim=2, action_dim=2, action_repeat=1, episode_steps=DECISIONS, terminates=True, name="four-rooms")


def search(seeds: Sequence[int]) -> list[Row]:
    """Evaluate two seeds of the preset by how widely they search."""
    dataset, episodes = cartpole("medium", 400), 20
    kinds: dict[str, tuple[str, ...]] = {
        "16 beams": (),
        "4 beams": (f"{TT}.planner.beams=4",),
        "1 beam": (f"{TT}.planner.beams=1",),
        "16 beams, predictions shuffled": (),
        "likeliest action, no search": IMITATE,
    }
    rows: list[Row] = [("search", *head(seeds))]
    runs = [trained(RUNS / f"search-{seed}", CART, seed, dataset, **REPEAT) for seed in seeds]
    for kind, overrides in kinds.items():
        returns = []
        for run in runs:
            agent = TrainedAgent(run, overrides)
            if "shuffled" in kind:
                planner = planning(agent).planner
                planner._number = partial(shuffled, planner, torch.Generator().manual_seed(0))
            returns.append(agent.evaluate(episodes).returns)
        rows.append((kind, *map(mean, (*returns, chain(*returns)))))
    return rows


def shuffled(planner: BeamSearch, generator: torch.Generator, outcome: Outcome, name: str) -> Tensor:
    """Read rewards or values as `planner` does, and hand them out to the candidates at random."""
    numbers = BeamSearch._number(planner, outcome, name)
    return numbers[torch.randperm(len(numbers), generator=generator)]


def tokens(seeds: Sequence[int]) -> list[Row]:
    """Train on two behaviours, good and half as good, with both kinds of bins."""
    dataset = cartpole("medium-expert", 200)
    rows: list[Row] = [("bins", *head(seeds))]
    for kind in ("quantile", "uniform"):
        settings = {f"{TT}.model.tokens": kind, "training.offline_updates": 1_000, **REPEAT}
        runs = [trained(RUNS / f"tokens-{kind}-{seed}", CART, seed, dataset, **settings) for seed in seeds]
        returns = [TrainedAgent(run).evaluate(20).returns for run in runs]
        rows.append((kind, *map(mean, (*returns, chain(*returns)))))
    return rows


def goals(seeds: Sequence[int]) -> list[Row]:
    """Reach 50 goals where logged walks end, and 50 where they only pass; each from another room."""
    dataset = logged("rooms/walks-v0", lambda: walks(2_000, seed=0))
    # Uniform bins: of unequal ones the likeliest is often the widest. No context: who sees where it came from goes
    # straight on, as walks mostly do.
    model: dict[str, Any] = {"goals": True, "model.tokens": "uniform", "model.window": 2, "learner.batch_size": 128}
    model |= {f"planner.{name}": value for name, value in GREEDY.items()}
    run = trained(
        RUNS / f"goals-{seeds[0]}", LOGS + dataset, seeds[0], dataset, **{TT: model, "training.offline_updates": 6_000}
    )
    sampled = {"likeliest action": (), "sampled action": (f"{TT}.planner.mode=offline", f"{TT}.planner.nucleus=0.9")}
    rows: list[Row] = [("goals", "acts by", "reached", "without the goal")]
    for kind in ("walks end there", "walks only pass there"):
        rng, pairs = np.random.default_rng(1), list[tuple[np.ndarray, np.ndarray]]()
        while len(pairs) < 50:
            start, goal = random_point(rng), random_point(rng)
            if (start * goal < 0).any() and passed_through(goal) == ("pass" in kind):
                pairs.append((start, goal))
        for how, overrides in sampled.items():
            policy = planning(TrainedAgent(run, overrides))
            rows.append((kind, how, *(share(reached(policy, pairs, told)) for told in (True, False))))
    return rows


def reached(policy: PlanningPolicy, pairs: Sequence[tuple[np.ndarray, np.ndarray]], told: bool) -> list[float]:
    """Walk from each start, told the goal or not; 1 for each goal that was reached."""
    episodes = [policy.start(i, 0.0, goal if told else None) for i, (_, goal) in enumerate(pairs)]
    positions, there = [start for start, _ in pairs], [False] * len(pairs)
    for _ in range(DECISIONS):
        actions = policy.decide(episodes, {"observations": np.stack(positions)}).actions
        positions = [moved(position, action) for position, action in zip(positions, actions, strict=True)]
        there = [was or near(at, goal) for was, at, (_, goal) in zip(there, positions, pairs, strict=True)]
    return [float(was) for was in there]


def mazes(seeds: Sequence[int]) -> list[Row]:
    """Go two doors far, by walks of which none passes more than one."""
    dataset = logged("rooms/sparse-v0", lambda: walks(2_000, seed=0, rewarded=True))
    task = "qttdm.deploy.suite.four_rooms:FourRooms"
    # As published for mazes, but for the rates, which are the preset laptop's.
    iql: dict[str, Any] = {"expectile": 0.9, "temperature": 10.0, "ema_coefficient": 0.02}
    iql |= {"values.learning_rate": 1e-3, "policy.learning_rate": 1e-3}
    settings: dict[str, Any] = {
        TT: {"critic": True, "iql.width": 64, "learner.iql": iql},
        "training.offline_updates": 1_500,
    }
    settings |= {"env.episode_steps": DECISIONS, "env.action_repeat": 1}
    runs = [trained(RUNS / f"mazes-{seed}", task, seed, dataset, **settings) for seed in seeds]
    kinds: dict[str, tuple[str, ...]] = {
        "TT(+Q)": (),
        "TT": (f"{TT}.critic=false",),
        "IQL, the same critic": ("agent=iql", "iql.iql.width=64"),
        "TT, imitation": (f"{TT}.critic=false", *IMITATE),
    }
    rows: list[Row] = [("agent", *head(seeds))]
    for kind, overrides in kinds.items():
        returns = [TrainedAgent(run, overrides).evaluate(50).returns for run in runs]
        rows.append((kind, *map(share, (*returns, chain(*returns)))))
    return rows


def open_loop(seeds: Sequence[int]) -> list[Row]:
    """Imagine 50 steps of 40 episodes that were not trained on, by their logged actions."""
    dataset, others = cartpole("medium", 400), cartpole("medium", 40, seed=100)
    run = trained(RUNS / f"search-{seeds[0]}", CART, seeds[0], dataset, **REPEAT)
    parameters = sum(p.numel() for p in planning(TrainedAgent(run)).planner.dynamics.parameters())
    width = int((14**2 + 4 * parameters) ** 0.5 / 2) - 7  # of as many parameters: width^2 + 14 width
    mlp: dict[str, Any] = {"model": {"predict_change": True, "width": width}, "learner.batch_size": 32 * 16}
    beside = trained(RUNS / f"open-loop-{seeds[0]}", CART, seeds[0], dataset, agent="mlp", mlp=mlp, **REPEAT)
    return [*rows_of(compare([run, beside], open_dataset(others), starts=80, steps=50))]


def logged(name: str, make: Callable[[], list[Episode]]) -> str:
    """Return that data set, written if it is missing."""
    if not (data_root() / name).exists():
        write_dataset(name, make(), ROOMS)
    return name


def planning(agent: TrainedAgent) -> Any:
    """Return the policy of a model that is planned in."""
    assert isinstance(agent.policy, PlanningPolicy)
    return agent.policy


EXPERIMENTS: dict[str, Experiment] = {
    "search": search,
    "tokens": tokens,
    "goals": goals,
    "mazes": mazes,
    "open-loop": open_loop,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments named, or all; returns the exit status."""
    seeds = "default: 1 2; goals and open-loop use one"
    return run_suite(RUNS, __doc__.splitlines()[0], EXPERIMENTS, arguments, ([1, 2], seeds))


if __name__ == "__main__":
    sys.exit(main())
