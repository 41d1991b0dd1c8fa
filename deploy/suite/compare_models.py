"""`qttdm compare-models`: which dynamics model foresees more, and which is better to plan in.

runs, data set --load--> agents --drift--> errors of imagined steps                        --table, draw--> .md, .png
                                --one planner in each--> returns, beside the true simulator's
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from qttdm.actors.evaluation import evaluate
from qttdm.common.config import ConfigError
from qttdm.common.contracts import DynamicsModel
from qttdm.common.environments.make import make_env
from qttdm.common.models.simulator import Simulator
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig, load_saved_config
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.plot import Array, mean_interval
from qttdm.deploy.suite.open_loop import draw_starts, drift, median_interval
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from qttdm.planner_service.policies.planning import PlanningPolicy
from qttdm.replay.datasets import Dataset, folder_of

DEPTHS = (1, 5, 12, 25, 50)
"""steps after which the table has the error"""
SHOOTING = RandomShootingConfig()
SEED = 0
"""of start states and of the planner's noise, the same for each model"""


@dataclass(frozen=True)
class Judged:
    """What was found of one model."""

    name: str
    agent: str
    parameters: int
    errors: Array | None
    """[S, T]; None of the simulator, which makes none"""
    returns: list[float]
    """of the episodes in which it was planned in; there may be none"""


def load(path: Path, dataset: Dataset, task: str | None = None) -> tuple[TrainedAgent, PlanningPolicy]:
    """Load a run, and what plans, for that task or its own. ConfigError if it cannot be judged by this data set."""
    agent = TrainedAgent(path, [] if task is None else [f"task={task}"])
    policy, config = agent.policy, agent.config
    if not isinstance(policy, PlanningPolicy) or isinstance(policy.planner.dynamics, Simulator):
        raise ConfigError(
            f"{path}: agent={config.agent} has learned no dynamics model that it plans in; want a run of qt-tdm, tdm, "
            f"mlp, trajectory-transformer or generalist"
        )
    try:
        dataset.check(agent.spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    held_out = folder_of(dataset.name)
    if any(held_out.is_relative_to(folder_of(learned)) for learned in learned_from(config)):
        raise ConfigError(
            f"{path}: has learned from the data set {dataset.name} itself; want one of other episodes, such as "
            f"qttdm collect writes with another --set seed=.."
        )
    return agent, policy


def learned_from(config: RunConfig) -> Iterator[str]:
    """Name the data sets, or groups, of a run and of those whose networks it began with, as far as they are there."""
    if config.training.dataset is not None:
        yield config.training.dataset
    start = config.training.start_from
    if start is not None and (path := RunDir(start).config_path).is_file():
        yield from learned_from(load_saved_config(path))


def compare(
    paths: Sequence[Path],
    dataset: Dataset,
    starts: int,
    steps: int,
    episodes: int = 0,
    planner: RandomShootingConfig = SHOOTING,
    task: str | None = None,
) -> list[Judged]:
    """Judge the model of each run, by S starts of T steps, and by so many episodes of this planner in it.

    task: instead of the runs' own, for models of many tasks.
    If there are episodes and the task can be simulated from any state, that comes last. ConfigError if something does
    not fit, before anything is judged.
    """
    loaded = [load(path, dataset, task) for path in paths]
    first = loaded[0][0]
    for path, (agent, policy) in zip(paths, loaded, strict=True):
        if episodes and (agent.config.task, agent.config.env) != (first.config.task, first.config.env):
            raise ConfigError(f"{path}: its task or its settings of env are not those of {paths[0]}; want one task")
        window = policy.planner.dynamics.window
        if episodes and window is not None and planner.horizon > window:
            raise ConfigError(f"--horizon {planner.horizon}: {path} imagines {window} steps; want from 1 to {window}")
    logged = draw_starts(list(dataset.episodes()), starts, steps)
    judged = []
    for path, (agent, policy) in zip(paths, loaded, strict=True):
        model, networks = policy.planner.dynamics, policy.networks
        parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
        errors = drift(model, logged, policy.device)
        returns = plan_in(model, networks, agent, planner, episodes) if episodes else []
        judged.append(Judged(str(path), agent.config.agent, parameters, errors, returns))
    if episodes and first.spec.simulator_state:
        returns = plan_in(Simulator(first.spec), nn.ModuleDict(), first, planner, episodes)
        judged.append(Judged("the true simulator", "-", 0, None, returns))
    return judged


def plan_in(
    model: DynamicsModel, networks: nn.ModuleDict, agent: ActingAgent, planner: RandomShootingConfig, episodes: int
) -> list[float]:
    """Return what the planner earns in a model; the same episodes for every model."""
    policy = shooting_in(model, networks, agent, planner)
    envs = [make_env(agent.config.task, agent.config.env, isinstance(model, Simulator)) for _ in range(episodes)]
    try:
        return evaluate(envs, policy, SEED).returns
    finally:
        for env in envs:
            env.close()


def shooting_in(
    model: DynamicsModel, networks: nn.ModuleDict, agent: ActingAgent, planner: RandomShootingConfig
) -> PlanningPolicy:
    """Plan in a model, rewards added up as they are."""
    device = torch.device("cpu") if isinstance(model, Simulator) else agent.device
    return PlanningPolicy(planner.make(1.0, agent.spec.action_dim, model), networks, agent.data, device)


def rows_of(judged: Sequence[Judged]) -> list[list[str]]:
    """Make the rows of a table, the first its head: medians of errors and means of returns, with 95% intervals."""
    steps = max(one.errors.shape[1] for one in judged if one.errors is not None)
    depths = [depth for depth in DEPTHS if depth <= steps]
    planned = any(one.returns for one in judged)
    head = ["model", "agent", "parameters", *(f"error at {depth}" for depth in depths), *["return"] * planned]
    rows = [head]
    for one in judged:
        row = [one.name, one.agent, f"{one.parameters:,}"]
        if one.errors is None:
            row += ["-"] * len(depths)
        else:
            at = zip(
                *(numbers[[depth - 1 for depth in depths]] for numbers in median_interval(one.errors)), strict=True
            )
            row += [f"{middle:.3g} ({low:.3g}-{high:.3g})" for middle, low, high in at]
        if planned:
            mean, low, high = mean_interval(one.returns)
            row.append(f"{mean:.4g} ({low:.4g}-{high:.4g})")
        rows.append(row)
    return rows


def table(judged: Sequence[Judged]) -> str:
    """Write the rows as a table in Markdown."""
    head, *rows = rows_of(judged)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *rows))


def draw(judged: Sequence[Judged], out: Path) -> None:
    """Draw errors over steps, and the returns if there are any, with their 95% intervals."""
    planned = any(one.returns for one in judged)
    figure = Figure(figsize=(12.0 if planned else 6.4, 4.2), dpi=150, layout="constrained")
    names = [Path(one.name).name for one in judged]
    axes = figure.subplots(1, 2 if planned else 1, squeeze=False)[0]
    for number, one in enumerate(judged):
        if one.errors is not None:
            medians, lows, highs = median_interval(one.errors)
            step = np.arange(1, len(medians) + 1)
            axes[0].fill_between(step, lows, highs, color=f"C{number}", alpha=0.18, linewidth=0)
            axes[0].plot(step, medians, color=f"C{number}", label=f"{names[number]} ({one.agent})")
        if planned:
            mean, low, high = mean_interval(one.returns)
            axes[1].barh(number, mean, xerr=[[mean - low], [high - mean]], color=f"C{number}", alpha=0.7)
    axes[0].set(xlabel="imagined steps", ylabel="median error, standard deviations", yscale="log")
    axes[0].legend(fontsize=8)
    if planned:
        axes[1].set_xlabel("return")
        axes[1].set_yticks(range(len(names)), names, fontsize=8)
        axes[1].invert_yaxis()
    figure.savefig(out)
