"""The three agents as compositions: which networks there are, what trains them, and what acts with them.

| agent  | networks | acts by                                                                |
|--------|----------|------------------------------------------------------------------------|
| qt-tdm | tdm, qt  | planning with the TDM, QT proposals and QT terminal values             |
| tdm    | tdm      | planning with the TDM alone                                            |
| qt     | qt       | the QT's greedy action; epsilon-greedy when collecting                 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qttdm.actors.evaluation import Evaluation, evaluate, film
from qttdm.common.config import ConfigError
from qttdm.common.contracts import DataSpec, vector_data
from qttdm.common.environments.make import make_env
from qttdm.common.environments.task_env import TaskEnv, TaskSpec
from qttdm.common.models.qt import QT
from qttdm.common.models.tdm import TDM
from qttdm.deploy.configs.run_config import RunConfig, check_fits
from qttdm.learner.learner import Learner, Part
from qttdm.learner.parts.qt import QTLearner
from qttdm.learner.parts.tdm import TDMLearner
from qttdm.planner_service.planners.mppi import Planner
from qttdm.planner_service.policies.greedy import GreedyPolicy
from qttdm.planner_service.policies.planning import PlanningPolicy


def choose_device(name: str) -> torch.device:
    """`auto` or a torch device. ConfigError if there is no such device here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        usable.append("cuda")
    if name.startswith("mps"):
        raise ConfigError(f"device={name}: a run could not be resumed on it; want one of {', '.join(usable)}")
    if name not in usable:
        raise ConfigError(f"device={name}: not usable here; want one of {', '.join(usable)}")
    return torch.device(name)


def use_bfloat16(config: RunConfig, device: torch.device) -> bool:
    """Whether networks run in bfloat16 (autocast). `auto` is yes on a GPU; few CPUs gain by it."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")


def make_tdm(config: RunConfig, spec: TaskSpec) -> TDM:
    """A fresh TDM for the task."""
    return TDM(config.tdm, spec.obs_dim, spec.action_dim, spec.terminates)


def make_qt(config: RunConfig, spec: TaskSpec) -> QT:
    """A fresh QT for the task."""
    return QT(config.qt, spec.obs_dim, spec.action_dim)


def make_learner(config: RunConfig, spec: TaskSpec, device: torch.device) -> Learner:
    """The agent's networks, freshly initialised from torch's global generator, and their training."""
    parts: list[Part] = []
    c = config.learner
    if config.agent in ("qt-tdm", "tdm"):
        parts.append(TDMLearner(c.tdm, make_tdm(config, spec).to(device), c.compile))
    if config.agent in ("qt-tdm", "qt"):
        parts.append(QTLearner(c.qt, make_qt(config, spec).to(device), config.discount, c.compile))
    decisions = config.training.env_steps // spec.action_repeat - config.training.seed_decisions
    total_updates = max(1, round(decisions * config.training.update_ratio))
    return Learner(config.learner, parts, device, total_updates, use_bfloat16(config, device))


def data_of(config: RunConfig, spec: TaskSpec) -> DataSpec:
    """What the agent wants of each step of the task."""
    return vector_data(spec.obs_dim, spec.action_dim, config.tdm.window, config.discount)


def make_policy(config: RunConfig, spec: TaskSpec, device: torch.device) -> PlanningPolicy | GreedyPolicy:
    """What acts with the learner's weights: a copy of its own, to be filled with `load`."""
    with torch.random.fork_rng(
        devices=[]
    ):  # initial weights are thrown away: they must not move the learner's random stream
        tdm, qt = make_tdm(config, spec).to(device), make_qt(config, spec).to(device)
    data = data_of(config, spec)
    if config.agent == "qt":
        return GreedyPolicy(qt, nn.ModuleDict({"qt": qt}), data, device)
    networks = nn.ModuleDict({"tdm": tdm} | ({"qt": qt} if config.agent == "qt-tdm" else {}))
    value_function = qt if config.agent == "qt-tdm" else None
    planner = Planner(config.planner, config.discount, spec.action_dim, tdm, value_function)
    return PlanningPolicy(planner, networks, data, device, use_bfloat16(config, device), config.planner.compile)


def greedy_beside(policy: PlanningPolicy | GreedyPolicy, data: DataSpec) -> GreedyPolicy | None:
    """The greedy policy of a planning policy's value function, with its networks; None where it has none."""
    if isinstance(policy, PlanningPolicy) and policy.planner.value_function is not None:
        return GreedyPolicy(policy.planner.value_function, policy.networks, data, policy.device)
    return None


def exploration(config: RunConfig, env_steps: int) -> float:
    """How much the collecting agent explores now, in [0, 1]: scheduled for qt; a planner explores as configured."""
    return config.epsilon.at(env_steps / config.training.env_steps) if config.agent == "qt" else 1.0


class Agent:
    """A policy and its task: it acts, is evaluated and filmed, with whatever weights `policy.load` was given."""

    def __init__(self, config: RunConfig) -> None:
        """ConfigError if the settings do not fit together or to the task. Sets torch's number of threads."""
        self.config = config
        self.device = choose_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.env = make_env(config.task, config.env)
        self.spec = self.env.task_spec
        check_fits(config, self.spec)
        self.data = data_of(config, self.spec)
        self.policy = make_policy(config, self.spec, self.device)
        self._eval_envs: list[TaskEnv] = []

    def evaluate(self, episodes: int) -> Evaluation:
        """The current weights, in environments of their own."""
        while len(self._eval_envs) < episodes:
            self._eval_envs.append(make_env(self.config.task, self.config.env))
        return evaluate(self._eval_envs[:episodes], self.policy, self.config.seed)

    def film(self, should_stop: Callable[[], bool] = lambda: False) -> list[Any]:
        """Frames of the first evaluation episode with the current weights. RenderError where nothing can draw."""
        env = make_env(self.config.task, self.config.env)
        try:
            return film(env, self.policy, self.config.seed, should_stop)
        finally:
            env.close()

    @property
    def frames_per_second(self) -> float:
        """For a video in which one frame is one decision: the simulator's own rate over the action repeat."""
        return self.env.metadata.get("render_fps", 30) / self.spec.action_repeat
