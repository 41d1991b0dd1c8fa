"""An agent on its task: it acts, is evaluated and filmed, with the weights that its policy was given last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qttdm.actors.evaluation import Evaluation, evaluate, film
from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.task_env import TaskEnv
from qttdm.deploy.configs.run_config import RunConfig, check_fits
from qttdm.deploy.runs.build import choose_device, make_policy, make_task_env, task_spec
from qttdm.deploy.screens.video import captioned


class ActingAgent:
    """A policy and its environments."""

    def __init__(self, config: RunConfig, spec: TaskSpec | None = None) -> None:
        """spec: the task's; None: an environment is made, and asked.

        ConfigError if the settings do not fit together or to the task. Sets torch's number of threads.
        """
        self.config = config
        self.device = choose_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.spec = spec or task_spec(config)
        check_fits(config, self.spec)
        self.agent = config.make_agent(self.spec)
        self.data = self.agent.data
        self.policy = make_policy(config, self.spec, self.device)
        self._envs: list[TaskEnv] = []

    def evaluate(self, episodes: int, should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """Act without exploration for so many episodes, the same start states every time. Stopped."""
        while len(self._envs) < episodes:
            self._envs.append(make_task_env(self.config, self.spec))
            should_stop()
        return evaluate(self._envs[:episodes], self.policy, self.config.seed, should_stop)

    def film(self, should_stop: Callable[[], bool] = lambda: False) -> tuple[list[Any], float]:
        """Draw frames of the first evaluation episode, one a decision with step and return, and how many make a second.

        RenderError where nothing can draw.
        """
        env = make_task_env(self.config, self.spec)
        try:
            frames, episode = film(env, self.policy, self.config.seed, should_stop)
            return captioned(frames, episode.rewards, self.spec.action_repeat), env.metadata.get(
                "render_fps", 30
            ) / self.spec.action_repeat
        finally:
            env.close()


def agent_without_training(config: RunConfig) -> ActingAgent:
    """Make an agent that needs no training. ConfigError if it has networks to train."""
    agent = ActingAgent(config)
    if any(True for _ in agent.policy.networks.parameters()):
        raise ConfigError(f"agent={config.agent} acts with trained networks; want the directory of one of its runs")
    return agent
