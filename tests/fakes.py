"""Stand-ins for what is slow or learned: dynamics and values given as functions, toy environments, tiny settings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces, wrappers
from torch import Tensor, nn

from qttdm.common.config import load_config
from qttdm.common.contracts import DataSpec, Policy, TaskSpec, vector_data
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.models.qt import QT, QTConfig
from qttdm.common.models.sequence_model import Layout, SequenceModel, SequenceModelConfig
from qttdm.common.models.tdm import TDM, Prediction, TDMConfig
from qttdm.common.models.tokenizer import ActionTokenizer
from qttdm.common.trees import TensorTree
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.planner_service.planners.mppi import MPPI, MPPIConfig
from qttdm.planner_service.policies.greedy import GreedyPolicy
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.policies.planning import PlanningPolicy

torch.set_num_threads(1)  # tensors here are tiny: a second thread only waits for the first

StepFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""states [B, M], actions [B, N] -> next states [B, M], rewards [B], log-odds [B] of going on or None"""


@dataclass
class FakeRollout:
    """Where imagined sequences stand."""

    observations: Tensor


class FakeDynamics:
    """A dynamics model, to the planner, that is a function; remembers what was imagined."""

    window: int | None = None

    def __init__(self, step: StepFunction, action_dim: int, bins: int) -> None:
        self.step_function, self.action_dim = step, action_dim
        self.tokenizer = ActionTokenizer(bins)
        self.taken: list[Tensor] = []  # the actions [B, N] of every imagined step

    def start(self, context: TensorTree) -> FakeRollout:
        return FakeRollout(context["observations"])

    def select(self, rollout: FakeRollout, index: Tensor, room: int, out: Any = None) -> FakeRollout:
        return FakeRollout(rollout.observations[index])

    def state(self, rollout: FakeRollout) -> TensorTree:
        return {"observations": rollout.observations}

    def quantise(self, actions: Tensor) -> Tensor:
        return self.tokenizer.snap(actions)

    def uniform(self, chance: Tensor) -> Tensor:
        return self.tokenizer.uniform(chance)

    def step(self, rollout: FakeRollout, actions: Tensor) -> Prediction:
        self.taken.append(actions)
        rollout.observations, rewards, logits = self.step_function(rollout.observations, actions)
        return Prediction(rollout.observations, rewards, logits)


class FakeValue:
    """A value function, to the planner, that is a function; proposes the middle bin."""

    def __init__(self, value: Callable[[Tensor], Tensor], action_dim: int, bins: int) -> None:
        self.value_function, self.action_dim = value, action_dim
        self.tokenizer = ActionTokenizer(bins)

    def value(self, state: TensorTree) -> Tensor:
        return self.value_function(state["observations"])

    def propose(
        self, state: TensorTree, chance: Tensor, which: Tensor, probability: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        bins = torch.full((len(chance), self.action_dim), self.tokenizer.bins // 2)
        return self.tokenizer.decode(self.tokenizer.replace(bins, chance, which, probability)), self.value(state)


def randomise(network: nn.Module, std: float = 0.3) -> nn.Module:
    """Every parameter moved by N(0, std): fresh networks end in zeros, which would hide most mistakes."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(std * torch.randn(parameter.shape))
    return network.eval().requires_grad_(False)


def tiny_tdm(seed: int, obs_dim: int = 3, action_dim: int = 2, bins: int = 7, can_terminate: bool = True) -> TDM:
    """A real TDM with random weights, a function of the seed, in eval mode."""
    config = TDMConfig(embed_dim=8, num_heads=2, num_layers=2, window=5, bins=bins, head_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(TDM(config, obs_dim, action_dim, can_terminate))


def tiny_sequence_model(
    seed: int, obs_dim: int = 3, action_dim: int = 2, bins: int = 5, window: int = 4, can_terminate: bool = True
) -> SequenceModel:
    """A real sequence model with goals and random weights, a function of the seed, in eval mode."""
    config = SequenceModelConfig(embed_dim=8, num_heads=2, num_layers=2, window=window, bins=bins, dropout=0.0)
    layout = Layout({"observations": obs_dim, "actions": action_dim}, ("rewards", "values"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SequenceModel(config, layout, can_terminate, goals=True)
        edges, centres = model.tokens.edges.clone(), model.tokens.centres.clone()
        randomise(model)
    model.tokens.edges.copy_(edges)
    model.tokens.centres.copy_(centres)
    return model


def tiny_generalist(seed: int, obs_dim: int = 3, action_dim: int = 2, bins: int = 7, window: int = 5) -> SequenceModel:
    """A real generalist with random weights, a function of the seed, in eval mode."""
    config = SequenceModelConfig(
        shared=True, embed_dim=8, num_heads=2, num_layers=2, window=window, bins=bins, dropout=0.0, most_numbers=6
    )
    layout = Layout({"observations": obs_dim, "rewards": 1, "separator": 1, "actions": action_dim}, ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SequenceModel(config, layout, can_terminate=False)
        edges, centres = model.tokens.edges.clone(), model.tokens.centres.clone()
        randomise(model)
    model.tokens.edges.copy_(edges)
    model.tokens.centres.copy_(centres)
    return model


def planning_policy(config: MPPIConfig, tdm: TDM, qt: QT | None, action_dim: int = 2) -> PlanningPolicy:
    """Plans with these networks, on the CPU."""
    networks = nn.ModuleDict({"tdm": tdm} | ({"qt": qt} if qt is not None else {}))
    planner = MPPI(config, 0.95, action_dim, tdm, qt)
    return PlanningPolicy(planner, networks, tiny_data(tdm.obs_dim, action_dim), torch.device("cpu"))


def greedy_policy(qt: QT) -> GreedyPolicy:
    """Acts by this network, on the CPU."""
    networks = nn.ModuleDict({"qt": qt})
    return GreedyPolicy(qt, networks, tiny_data(qt.obs_dim, qt.action_dim), torch.device("cpu"))


class Acting:
    """A policy that acts in lockstep, for one batch of episodes after the other."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def begin(self, seeds: Sequence[int], exploration: float) -> None:
        self.episodes = Lockstep(self.policy, seeds, exploration)

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self.episodes.act({"observations": observations})


def tiny_data(obs_dim: int = 3, action_dim: int = 2) -> DataSpec:
    """Data of the tiny networks' task."""
    return vector_data(obs_dim, action_dim, window=5, discount=0.95)


def tiny_qt(seed: int, obs_dim: int = 3, action_dim: int = 2, bins: int = 7, **config: Any) -> QT:
    """A real QT with random weights, a function of the seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(QT(QTConfig(embed_dim=8, num_heads=2, num_layers=2, bins=bins, **config), obs_dim, action_dim))


class Point(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point in the plane, pushed by its actions: observes its place and its age, is paid for being near the origin.

    ends_at: the step (counted over one episode) at which the task itself ends. pay: multiplies the reward.
    """

    def __init__(self, render_mode: str | None = None, ends_at: int = 10**9, pay: float = 1.0) -> None:
        self.observation_space = spaces.Box(-100.0, 100.0, (3,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.ends_at, self.pay = ends_at, pay

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.age = self.np_random.uniform(-1, 1, 2), 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + 0.1 * np.asarray(action) + 0.01 * self.np_random.normal(size=2)
        self.age += 1
        info = {"success": float(self.age % 2)}
        return self._observe(), self.pay * float(np.exp(-np.sum(self.place**2))), self.age >= self.ends_at, False, info

    def _observe(self) -> np.ndarray:
        return np.array([*self.place, 0.01 * self.age])


class HangingPoint(Point):
    """A Point that hangs in C, holding Python's lock, at the 24th step of an episode, once for a file `hang` here."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.age == 24 and (fault := Path("hang")).exists():
            fault.unlink()
            ctypes.PyDLL(None).sleep(10**6)
        return super().step(action)


def point_env(steps: int, action_repeat: int = 1, ends_at: int = 10**9) -> TaskEnv:
    """A Point as the agent sees it: at most `steps` simulator steps, ending by itself after `ends_at`."""
    env = wrappers.DtypeObservation(wrappers.TimeLimit(Point(ends_at=ends_at), steps), np.float32)
    return TaskEnv(env, TaskSpec(3, 2, action_repeat, steps, terminates=True))


gymnasium.register("FakePoint-v0", Point, max_episode_steps=80)
gymnasium.register("FakePointHangs-v0", HangingPoint, max_episode_steps=80)
gymnasium.register("FakePointEnds-v0", Point, max_episode_steps=80, kwargs={"ends_at": 36})
gymnasium.register("FakePointPoisoned-v0", Point, max_episode_steps=80, kwargs={"pay": 1e38})


def tiny_config(*overrides: str, task: str = "gym/FakePoint-v0", agent: str | None = None, seed: int = 0) -> RunConfig:
    """The debug preset on a toy task: 10 decisions an episode, the first one random, no evaluation or checkpoint."""
    own = [
        "threads=1",
        "device=cpu",
        "env={action_repeat: 8, episode_steps: 80}",
        "training={env_steps: 320, seed_decisions: 10, eval_every: 10000, checkpoint_every: 10000, eval_episodes: 2}",
    ]
    tdm, planner = "tdm={num_layers: 1, head_layers: 1}", "planner={horizon: 2, samples: 8}"
    of_agent = {
        "qt-tdm": [f"qt-tdm.{tdm}", f"qt-tdm.{planner}", "qt-tdm.planner.qt_samples=2"],
        "tdm": [f"tdm.{tdm}", f"tdm.{planner}"],
    }
    overrides = (*own, *of_agent.get(agent or "qt-tdm", []), *overrides)
    return load_config(RunConfig, preset_path("debug"), task=task, agent=agent, seed=seed, overrides=overrides)
