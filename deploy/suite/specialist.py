"""What one model of cartpole alone must show: experiments of `make generalist-suite` (generalist.py).

planner --CHOSEN--> specialist, three_uses, tokens: one run of the agent generalist, and what stands beside it
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qttdm.common.episode import Episode
from qttdm.common.models.sequence_model import SequenceModel
from qttdm.common.models.simulator import Simulator
from qttdm.common.run_dir import RunDir
from qttdm.deploy.agents.generalist import GeneralistConfig
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.local import open_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.plot import Array, mean_interval
from qttdm.deploy.suite.compare_models import compare, load, plan_in, shooting_in
from qttdm.deploy.suite.experiments import CART, REPEAT, Row, cartpole, mean, share, trained
from qttdm.deploy.suite.open_loop import median_interval
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from qttdm.planner_service.policies.planning import blank_observations
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
SIGMAS = (0.1, 0.3)
"""of the noise that is added to proposals"""
PROBE = 20
"""updates of a run that is made to be timed"""
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
    windows: int = 1_000
    """places in them at which rewards are asked for"""
    tdm: Mapping[str, Any] = field(default_factory=dict)
    """what differs from the preset laptop's in the model with a token for each state"""


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


def judge(
    size: Cart, runs: Sequence[Path], dataset: Dataset, depth: int, shooting: RandomShootingConfig | None = None
) -> dict[str, Array]:
    """Measure the models of runs, one after the other: `return` of each episode, `error` after that depth by start.

    shooting: None is what `planner` chose.
    """
    shooting = shooting or chosen(size)[0]
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


def three_uses(size: Cart, seeds: Sequence[int]) -> list[Row]:
    """Ask the specialist for rewards, for actions, and for both at once."""
    shooting, _ = chosen(size)
    search = {**shooting.model_dump(include={"noise", "std", "start", "horizon", "samples"}), "context": CONTEXT}
    proposing = {**search, "proposals": shooting.samples // 2}
    planners = {"imitation": {**IMITATE, "context": CONTEXT}, "shooting": search}
    planners |= {f"half of it proposed, sigma {std}": {**proposing, "proposal_std": std} for std in SIGMAS}
    logged = list(held_out().episodes())
    off, returns = list[float](), dict[str, list[float]]()
    for run in [of_numbers(size, seed) for seed in seeds]:
        model = load(run, held_out())[1].planner.dynamics
        assert isinstance(model, SequenceModel)
        off += reward_errors(model, logged, size.windows)
        for name, settings in planners.items():
            returns.setdefault(name, []).extend(acting(run, settings).evaluate(size.episodes).returns)
    rms, low, high = np.sqrt(mean_interval(off))
    data = np.array([episode.episode_return for episode in logged])
    part = np.array(returns["imitation"]) / data.mean()
    first, second, *proposed = returns.values()
    more = np.subtract(max(proposed, key=np.mean), max(first, second, key=np.mean))
    return [
        HEAD,
        ("RMS of rewards, in their deviation", f"{rms:.0%} ({low:.0%}-{high:.0%})", "< 10%", says(rms < 0.1)),
        ("return of the data", mean(data), "", ""),
        *((f"return, {name}", mean(earned), "", "") for name, earned in returns.items()),
        ("imitation, share of the data's", share(part), ">= 60%", says(part.mean() >= 0.6)),
        ("best proposed less the better of the first two", mean(more), ">= 0", says(more.mean() >= 0)),
    ]


def acting(run: Path, planner: Mapping[str, Any], *items: str) -> TrainedAgent:
    """Load a generalist that plans with these settings."""
    return TrainedAgent(run, [*items, *(f"generalist.planner.{key}={value}" for key, value in planner.items())])


def reward_errors(model: SequenceModel, episodes: Sequence[Episode], windows: int) -> list[float]:
    """Square how far the reward that is expected with an observation, CONTEXT steps before it, is off.

    Of so many places, in standard deviations of all rewards.
    """
    rng, steps = np.random.default_rng(0), CONTEXT
    drawn = [episodes[i] for i in rng.integers(len(episodes), size=windows)]
    pairs = [(e, int(rng.integers(e.decisions - steps + 1))) for e in drawn]
    seen = torch.from_numpy(np.stack([e.observations[at : at + steps + 1] for e, at in pairs]))
    acted = torch.from_numpy(np.stack([e.actions[at : at + steps] for e, at in pairs]))
    with torch.inference_mode():
        now = model.tokens.encode(seen[:, -1], model.columns_of("observations"))
        expected = model.imagine_rewards(model.begin(torch.cat([*remembered(model, seen, acted), now], dim=1)))
    came = np.array([e.rewards[at + steps - 1] for e, at in pairs])
    every = np.concatenate([episode.rewards for episode in episodes])
    return list(np.square((expected.numpy() - came) / every.std()))


def remembered(model: SequenceModel, observations: Tensor, actions: Tensor) -> list[Tensor]:
    """Turn T logged steps into what a planner remembers of them.

    observations [B, T or T+1, M], actions [B, T, N] -> T times int64 [B, K].
    """
    history: list[Tensor] = []
    for step, action in enumerate(actions.unbind(dim=1)):
        context = {"observations": observations[:, step]}
        root = model.start(context | ({"history": torch.cat(history, dim=1)} if history else {}))
        history.append(model.remember(root, action))
    return history


def tokens(size: Cart, seeds: Sequence[int]) -> list[Row]:
    """Give a model with a token for each state as many updates, and sequences, as fit into the same CPU time."""
    shooting, _ = chosen(size)
    rows: list[Row] = [("what", "a token a number", "a token a state", "the first less the second")]
    found: list[dict[str, Array]] = []
    for seed in seeds:
        numbers, probe = of_numbers(size, seed), of_states(size, f"probe-{seed}", seed, PROBE)
        updates = round(size.updates * update_seconds(numbers) / update_seconds(probe))
        states = of_states(size, f"states-{seed}", seed, updates)
        once = [decision_seconds(run, shooting) for run in (numbers, states)]
        wider = shooting.model_copy(update={"samples": round(shooting.samples * once[0] / once[1])})
        rows.append((f"updates, seed {seed}", f"{size.updates:,}", f"{updates:,}", ""))
        rows.append((f"sequences a decision, seed {seed}", shooting.samples, wider.samples, ""))
        for run, planned in ((numbers, shooting), (states, wider)):
            found.append(judge(size, [run], held_out(), size.depth, planned))
    for name, write in MEASURES.items():
        ours, theirs = (np.concatenate([one[name] for one in found[side::2]]) for side in (0, 1))
        rows.append((name, write(ours), write(theirs), write(ours - theirs)))
    return rows


def of_states(size: Cart, name: str, seed: int, updates: int) -> Path:
    """Return a run of the project's own dynamics model, the preset laptop's but for its window."""
    settings = {
        **size.env,
        "tdm.tdm": {"window": size.model["window"], **size.tdm},
        "training.offline_updates": updates,
    }
    return trained(RUNS / name, CART, seed, cartpole("medium", 400), "laptop", agent="tdm", **settings)


def update_seconds(path: Path) -> float:
    """Measure an update of a run, with drawing its batch."""
    with closing(open_run(RunDir.open(path))) as run:
        return cpu_seconds(lambda: run.learner.update(run.replay.next()))


def decision_seconds(path: Path, shooting: RandomShootingConfig) -> float:
    """Measure a decision by shooting in a run's model."""
    agent, policy = load(path, held_out())
    shooter = shooting_in(policy.planner.dynamics, policy.networks, agent, shooting)
    return cpu_seconds(lambda: shooter.decide([shooter.start(0, 0.0)], blank_observations(agent.data, 1)))


def cpu_seconds(work: Callable[[], object], times: int = 20) -> float:
    """Measure the median CPU time of something: others on the machine disturb it less than the time by the clock."""
    took = []
    for _ in range(times):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return float(np.median(took))


def median(numbers: Array, unit: str = ".2f") -> str:
    """Write the median and its interval."""
    middle, low, high = (float(of_one[0]) for of_one in median_interval(numbers[:, None]))
    return f"{middle:{unit}} ({low:{unit}} to {high:{unit}})"


MEASURES: dict[str, Callable[[Array], str]] = {"return": mean, "error": median}
"""how what `judge` found is written"""


def says(holds: object) -> str:
    """Say whether what must show does."""
    return "yes" if holds else "**no**"
