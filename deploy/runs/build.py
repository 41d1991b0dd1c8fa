"""From a resolved configuration and a task to its agent's learner and policy, on a device."""

from __future__ import annotations

import torch

from qttdm.common.config import ConfigError
from qttdm.common.contracts import Learner, Policy, TaskSpec
from qttdm.common.environments.make import make_env
from qttdm.common.environments.task_env import TaskEnv
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.learner.saved import start_from


def choose_device(name: str) -> torch.device:
    """Choose the device for `auto` or a name of torch's. ConfigError if there is no such device here."""
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
    """Say whether networks run in bfloat16 (autocast). `auto` is yes on a GPU; few CPUs gain by it."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")


def task_spec(config: RunConfig) -> TaskSpec:
    """Read the task's spec off one environment, made and closed."""
    env = make_env(config.task, config.env)
    env.close()
    return env.task_spec


def make_task_env(config: RunConfig, task: TaskSpec, training: bool = False) -> TaskEnv:
    """Make an environment that shows what the agent asks for; training: episodes are learned from, not counted."""
    shows_state = "simulator_state" in config.make_agent(task).data.observations
    return make_env(config.task, config.env, shows_state, training)


def make_learner(config: RunConfig, task: TaskSpec, device: torch.device) -> Learner:
    """Make the agent's learner, with schedules that end with the training."""
    training = config.training
    random = 0 if training.dataset else training.seed_decisions
    decisions = training.env_steps // task.action_repeat - random
    total_updates = max(1, training.offline_updates + round(decisions * training.update_ratio))
    return config.make_agent(task).learner(device, total_updates, use_bfloat16(config, device))


def check_start(config: RunConfig, task: TaskSpec) -> None:
    """Raise ConfigError if the run begins with networks that are not there, or others than its own."""
    if config.training.start_from is not None:
        start_from(make_learner(config, task, torch.device("cpu")), config.training.start_from)


def make_policy(config: RunConfig, task: TaskSpec, device: torch.device) -> Policy:
    """Make what acts with the learner's weights: a copy of its own, to be filled with `load`."""
    # Its first weights are thrown away: drawing them must not move the learner's random stream.
    with torch.random.fork_rng(devices=[]):
        return config.make_agent(task).policy(device, use_bfloat16(config, device))


def exploration(config: RunConfig, task: TaskSpec, env_steps: int) -> float:
    """Say how much the collecting policy explores after so many steps, in [0, 1]."""
    return config.make_agent(task).exploration(env_steps / max(1, config.training.env_steps))
