"""What the planner's economies save and what they cost: decision time, and return with trained runs' networks.

Each row is the paper's planner (the preset `exact`) with one thing changed; `fast` is the preset of that name, and `as
trained` whatever a run was trained with. All rows of a run act from the same start states, so that a difference to
`exact` is one of pairs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qttdm.actors.evaluation import evaluate
from qttdm.common.config import ConfigError, load_config
from qttdm.common.environments.make import make_env
from qttdm.common.environments.task_env import TaskSpec
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import Weights
from qttdm.deploy.agent import make_policy
from qttdm.deploy.plot import bootstrap_interval
from qttdm.deploy.run_config import RunConfig, planner_items
from qttdm.deploy.trained import TrainedAgent
from qttdm.learner.arithmetic import cpu_threads, timings
from qttdm.planner_service.planner_config import PRESETS
from qttdm.planner_service.policy import MPCPolicy

LESS = PRESETS["fast"] | {"iterations": 2, "samples": 64, "qt_samples": 64, "elites": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fast": PRESETS["fast"],
    **{f"2 x 64, init_std={std}": LESS | {"init_std": std} for std in (2.0, 1.0, 0.7, 0.5)},
    "sample_decay=1.5": {"sample_decay": 1.5},
    "first_dimension": {"terminal_value": "first_dimension"},
    "early_stop": {"early_stop": True},
    "noise_exponent=2": {"noise_exponent": 2.0},
    "keep_elites=8": {"keep_elites": 8},
    "samples=256 qt_samples=96": {"samples": 256, "qt_samples": 96},
    "iterations=3": {"iterations": 3},
}
"""planner settings on top of PRESETS["exact"], by what the tables call them"""


class TimedPolicy:
    """A policy that notes how long each decision took; actions come back on the CPU, so the device is done by then."""

    def __init__(self, policy: MPCPolicy) -> None:
        self.policy, self.weights_version, self.decided = policy, policy.weights_version, policy.decided
        self.seconds: list[float] = []

    def load(self, weights: Weights) -> None:
        self.policy.load(weights)

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.policy.begin(seeds, exploration)

    def act(self, observations: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        actions = self.policy.act(observations)
        self.seconds.append(time.perf_counter() - started)
        return actions


@dataclass(frozen=True)
class Row:
    """One planner, with all runs' networks."""

    name: str
    seconds: np.ndarray
    """[R], median of a decision for one environment, for each run"""
    returns: np.ndarray
    """[R * episodes]"""


def time_decision(c: RunConfig, spec: TaskSpec, device: torch.device, repeats: int, environments: int = 1) -> float:
    """Best seconds of one decision for all environments."""
    policy = make_policy(c, spec, device)
    if not isinstance(policy, MPCPolicy):
        raise ConfigError(f"agent={c.agent} does not plan; want qt-tdm or tdm")
    policy.begin(list(range(environments)), exploration=1.0)
    observations = np.zeros((environments, spec.obs_dim), np.float32)
    return min(timings(lambda: policy.act(observations), device, repeats))


def print_decision_times(name: str, config: RunConfig, spec: TaskSpec, device: torch.device) -> None:
    """Of all variants with untrained networks: no learned behaviour to lose, so only times."""
    print(f"\nplanner economies, {name}, decision time against the exact algorithm's in this run")

    def seconds(changes: dict[str, Any]) -> float:
        planner = config.planner.model_copy(update=PRESETS["exact"] | changes)
        return time_decision(config.model_copy(update={"planner": planner}), spec, device, repeats=3)

    exact = seconds({})
    for label, changes in VARIANTS.items():
        if label not in ("exact", "early_stop"):
            print(f"{label:28}{seconds(changes) / exact:8.3f}", flush=True)
    print("early_stop: not here, an untrained planner's std never comes down to its floor; see --run")


Variants = Mapping[str, dict[str, Any] | None]
"""planner settings on top of PRESETS["exact"], None for a run's own, by name; `exact` is the first"""


def variants_named(part: str) -> Variants:
    """The exact planner, and those whose name contains `part`. ConfigError if none does."""
    known: Variants = {"exact": {}, "as trained": None, **VARIANTS}
    if not any(part in name for name in known):
        raise ConfigError(f"--only {part}: no such planner; want a part of one of: {', '.join(known)}")
    return {name: changes for name, changes in known.items() if name == "exact" or part in name}


def print_run_economies(
    paths: Sequence[Path], variants: Variants, episodes: int, start: int | None, overrides: list[str]
) -> None:
    """Trained runs of one task: time and return of each variant, with 95% bootstrap intervals over the episodes.

    start: a seed of the episodes' start states; None: the runs' own.
    """
    configs = [load_config(RunConfig, RunDir.open(path).config_path, overrides=overrides) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        if config.agent == "qt":
            raise ConfigError(f"{path}: agent=qt does not plan, so it has no planner to economise on")
        if config.task != configs[0].task:
            raise ConfigError(f"{path}: it is a run of {config.task}, and {paths[0]} is one of {configs[0].task}")
    task = configs[0].task
    print(f"{task}, {len(paths)} runs, {episodes} episodes each; time 1 is the exact planner's for one environment")
    print(f"{'planner':28}{'ms':>8}{'time':>8}{'return':>9}{'95% interval':>20}{'to exact':>10}{'95% interval':>20}")
    envs = [make_env(task, configs[0].env) for _ in range(episodes)]
    exact: Row | None = None
    for label, changes in variants.items():
        row = run_row(label, changes, paths, envs, start, overrides)
        exact = exact or row
        print(format_row(row, exact), flush=True)


def run_row(
    label: str,
    changes: dict[str, Any] | None,
    paths: Sequence[Path],
    envs: Sequence[Any],
    start: int | None,
    overrides: list[str],
) -> Row:
    """Time and play; changes: on top of exact, or None for the run's own planner."""
    planner = [] if changes is None else planner_items(PRESETS["exact"] | changes)
    seconds, returns = [], []
    for path in paths:
        with cpu_threads(torch.get_num_threads()):  # a run sets its own number
            agent = TrainedAgent(path, [*overrides, *planner])
            assert isinstance(agent.policy, MPCPolicy)
            timed = TimedPolicy(agent.policy)
            seed = agent.config.seed if start is None else start
            evaluate(envs[:1], timed, seed)
            seconds.append(float(np.median(timed.seconds)))
            returns += evaluate(envs, timed, seed).returns
    return Row(label, np.array(seconds), np.array(returns))


def format_row(row: Row, exact: Row) -> str:
    """A line of the table."""
    difference = row.returns - exact.returns
    low, high = bootstrap_interval(row.returns[:, None])
    below, above = bootstrap_interval(difference[:, None])
    time_ratio = float(np.mean(row.seconds / exact.seconds))
    return (
        f"{row.name:28}{1e3 * row.seconds.mean():8.1f}{time_ratio:8.3f}{row.returns.mean():9.1f}"
        f"{f'{low[0]:.1f} to {high[0]:.1f}':>20}{difference.mean():+10.1f}{f'{below[0]:+.1f} to {above[0]:+.1f}':>20}"
    )
