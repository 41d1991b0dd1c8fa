"""What one model of cartpole alone must show: experiments of `make generalist-suite` (generalist.py).

planner --CHOSEN--> specialist, three_uses, tokens: one run of the agent generalist, and what stands beside it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qttdm.common.models.simulator import Simulator
from qttdm.deploy.agents.generalist import GeneralistConfig
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.screens.plot import Array
from qttdm.deploy.suite.compare_models import compare, load, plan_in
from qttdm.deploy.suite.experiments import CART, REPEAT, Row, cartpole, mean, share, trained
from qttdm.deploy.suite.open_loop import median_interval
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from qttdm.replay.datasets import Dataset, open_dataset

RUNS = Path("runs/generalist-suite")
CHOSEN = RUNS / "planner.json"
"""what `planner` chose, and its returns in the true simulator"""
PRESET = "generalist-laptop"
HEAD = ("what", "figure", "must show", "holds")
CONTEXT = 4
"""steps of an episode that the specialist is shown, where it is not compared with models that remember nothing"""
IMITATE = {"samples": 1, "proposals": 1, "proposal_std": 0, "horizon": 1}
"""a planner's settings: act as the data does"""
STAGES: tuple[Sequence[Mapping[str, Any]], ...] = (
    [
        {"noise": "white", "std": 0.5},
        {"noise": "white", "std": 1.0},
        {"noise": "brownian", "std": 0.5},
        {"noise": "brownian", "std": 2**0.5},
        {"noise": "brownian", "std": 0.25, "start": "uniform"},
        {"noise": "brownian", "std": 0.5, "start": "uniform"},
    ],
    [{"horizon": 6}, {"horizon": 9}],
    [{"samples": 16}, {"samples": 64}],
)
"""of the search for a planner: each changes what was best before it, which at first has N = 12, K = 32"""


@dataclass(frozen=True)
class Cart:
    """How much is done with cartpole."""

    env: Mapping[str, Any] = field(default_factory=lambda: REPEAT)
    """the environment's settings"""
    model: Mapping[str, Any] = field(
        default_factory=lambda: {**GeneralistConfig().model.model_dump(), "window": 12 + CONTEXT}
    )
    """the generalist's"""
    stages: Sequence[Sequence[Mapping[str, Any]]] = STAGES
    """of the search for a planner"""
    searching_steps: int = 480
    """simulator steps of the episode in which a planner is tried: the pole is up by then, or not"""
    episodes: int = 5
    """in which is planned, the same starts for each model"""
    updates: int = 4_000
    """of a model that begins with nothing"""
    starts: int = 40
    """in held-out episodes, of which there are 40"""
    depth: int = 25
    """imagined steps after which errors are compared"""


def planner(size: Cart, seeds: Sequence[int]) -> list[Row]:
    """Search one setting after the other by one start, in the true simulator; then measure the choice by others."""
    short = simulated({**size.env, "env.episode_steps": size.searching_steps})
    rows: list[Row] = [("noise", "from", "std", "N", "K", "return")]
    best, most = RandomShootingConfig(horizon=12, samples=32), -np.inf
    for stage in size.stages:
        before = best
        for changes in stage:
            tried = RandomShootingConfig(**{**before.model_dump(), **changes})
            (earned,) = in_simulator(short, tried, 1)
            rows.append((*searched(tried), f"{earned:.0f} in {size.searching_steps} steps"))
            print(*rows[-1], flush=True)
            best, most = (tried, earned) if earned > most else (best, most)
    returns = in_simulator(simulated(size.env), best, size.episodes)
    CHOSEN.parent.mkdir(parents=True, exist_ok=True)
    CHOSEN.write_text(json.dumps({"planner": best.model_dump(), "returns": returns}), encoding="utf-8")
    return [*rows, (*searched(best), f"chosen: {mean(returns)} in {size.episodes} whole episodes")]


def simulated(env: Mapping[str, Any]) -> ActingAgent:
    """Make cartpole for planning in itself."""
    items = [f"{key}={value}" for key, value in env.items()]
    return ActingAgent(load_run_config(preset_path("laptop"), items, task=CART, agent="simulator-shooting"))


def in_simulator(agent: ActingAgent, shooting: RandomShootingConfig, episodes: int) -> list[float]:
    """Return what the planner earns in the true simulator."""
    return plan_in(Simulator(agent.spec), nn.ModuleDict(), agent, shooting, episodes)


def searched(shooting: RandomShootingConfig) -> Row:
    """Write what is searched."""
    start = shooting.start if shooting.noise == "brownian" else "-"
    return shooting.noise, start, f"{shooting.std:.3g}", shooting.horizon, shooting.samples


def chosen(size: Cart) -> tuple[RandomShootingConfig, list[float]]:
    """Return the planner that was chosen, and its returns in the true simulator; it is searched if it is not there."""
    if not CHOSEN.exists():
        planner(size, [])
    found = json.loads(CHOSEN.read_text(encoding="utf-8"))
    return RandomShootingConfig(**found["planner"]), found["returns"]


def specialist(size: Cart, seeds: Sequence[int]) -> list[Row]:
    """Plan in models of cartpole, and follow episodes that they have not learned from."""
    _, true = chosen(size)
    ours, theirs = (
        judge(size, [run(size, seed) for seed in seeds], held_out(), size.depth) for run in (of_numbers, of_changes)
    )
    rows: list[Row] = [HEAD, ("return, true simulator", mean(true), "", "")]
    parts, others = (found["return"] / np.mean(true) for found in (ours, theirs))
    rows.append(("share of it in the generalist", share(parts), ">= 85%", says(parts.mean() >= 0.85)))
    rows.append(("share of it in the MLP of changes", share(others), "", ""))
    rows.append((f"error at {size.depth} steps, MLP of changes", median(theirs["error"]), "", ""))
    below = np.median(ours["error"]) < np.median(theirs["error"])
    rows.append((f"error at {size.depth} steps, generalist", median(ours["error"]), "less", says(below)))
    return rows


def judge(size: Cart, runs: Sequence[Path], dataset: Dataset, depth: int) -> dict[str, Array]:
    """Measure the models of runs, one after the other: `return` of each episode, `error` after that depth by start."""
    shooting, _ = chosen(size)
    returns, errors = list[float](), list[Array]()
    for path, one in zip(runs, compare(runs, dataset, size.starts, depth), strict=True):
        agent, policy = load(path, dataset)
        returns += plan_in(policy.planner.dynamics, policy.networks, agent, shooting, size.episodes)
        assert one.errors is not None
        errors.append(one.errors[:, -1])
    return {"return": np.array(returns), "error": np.concatenate(errors)}


def held_out() -> Dataset:
    """Open episodes that no model has learned from."""
    return open_dataset(cartpole("medium", 40, seed=100))


def of_numbers(size: Cart, seed: int) -> Path:
    """Return a generalist's run on cartpole alone."""
    return trained(RUNS / f"specialist-{seed}", CART, seed, cartpole("medium", 400), PRESET, **learning(size))


def learning(size: Cart) -> dict[str, Any]:
    """Make a generalist's settings on cartpoles."""
    return {**size.env, "generalist": {"model": size.model}, "training.offline_updates": size.updates}


def of_changes(size: Cart, seed: int) -> Path:
    """Return the run of an MLP that predicts changes, two layers of 400."""
    settings = {**size.env, "mlp.model.predict_change": True, "training.offline_updates": size.updates}
    return trained(RUNS / f"mlp-{seed}", CART, seed, cartpole("medium", 400), agent="mlp", **settings)


def median(numbers: Array, unit: str = ".2f") -> str:
    """Write the median and its interval."""
    middle, low, high = (float(of_one[0]) for of_one in median_interval(numbers[:, None]))
    return f"{middle:{unit}} ({low:{unit}} to {high:{unit}})"


def says(holds: object) -> str:
    """Say whether what must show does."""
    return "yes" if holds else "**no**"
