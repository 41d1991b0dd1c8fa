"""The true task as a dynamics model: what planning is worth when the model makes no mistakes.

A rollout is a row of simulator states (common/environments/dmc.py). Each thread has an environment of its own, puts a
sequence's state in, takes its action, and reads the state out again. MuJoCo releases Python's lock while it steps.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.models.box import BoxActions
from qttdm.common.trees import TensorTree

UNLIMITED = 2**62
"""simulator steps; a model knows no time limit"""


@dataclass
class SimulatorRollout:
    """Where B sequences stand."""

    states: np.ndarray
    """float64 [B, S]"""
    observations: np.ndarray
    """float32 [B, M]"""
    alive: np.ndarray
    """bool [B]: the episode goes on"""


@dataclass(frozen=True)
class SimulatorPrediction:
    """What happened to B sequences."""

    rewards: Tensor
    """float64 [B]; 0 after the end"""
    continuation_logits: Tensor | None
    """[B]: infinite, of either sign; None for tasks that cannot terminate"""


class Simulator(BoxActions):
    """DynamicsModel of a task whose environments show `simulator_state`; on the CPU, without parameters."""

    window: int | None = None

    def __init__(self, task: TaskSpec, threads: int | None = None) -> None:
        """threads: of one step; None: as many as torch uses."""
        self.task = task
        self.threads = threads or torch.get_num_threads()
        self._environments = [self._make() for _ in range(self.threads)]
        from dm_control.rl.control import PhysicsError  # not before `make_env` has chosen how MuJoCo draws

        self._physics_error = PhysicsError
        self._pool = ThreadPoolExecutor(self.threads, "simulator")

    def start(self, context: TensorTree) -> SimulatorRollout:
        """Begin at `simulator_state` float64 [E, S], which shows `observations` float32 [E, M]."""
        states, observations = context["simulator_state"].numpy(), context["observations"].numpy()
        return SimulatorRollout(states, observations, np.ones(len(states), np.bool_))

    def select(
        self, rollout: SimulatorRollout, index: Tensor, room: int, out: SimulatorRollout | None = None
    ) -> SimulatorRollout:
        """Copy sequences by number, index int64 [B]."""
        rows = index.numpy()
        return SimulatorRollout(rollout.states[rows], rollout.observations[rows], rollout.alive[rows])

    def step(self, rollout: SimulatorRollout, actions: Tensor) -> SimulatorPrediction:
        """Take actions float32 [B, N] in all sequences whose episode goes on."""
        rewards = np.zeros(len(rollout.states))
        taken = actions.numpy()

        def simulate(env: TaskEnv, rows: np.ndarray) -> None:
            for row in rows:
                try:
                    env.unwrapped.set_simulator_state(rollout.states[row])  # type: ignore[attr-defined]
                    observation, rewards[row], terminated, truncated, _ = env.step(taken[row])
                except self._physics_error:  # the sequence ends here; what others imagine goes on
                    rollout.alive[row] = False
                    continue
                rollout.observations[row] = observation
                rollout.states[row] = env.unwrapped.simulator_state()  # type: ignore[attr-defined]
                rollout.alive[row] = not (terminated or truncated)

        list(self._pool.map(simulate, self._environments, np.array_split(np.flatnonzero(rollout.alive), self.threads)))
        logits = None
        if self.task.terminates:
            logits = torch.from_numpy(np.where(rollout.alive, np.inf, -np.inf))
        return SimulatorPrediction(torch.from_numpy(rewards), logits)

    def state(self, rollout: SimulatorRollout) -> TensorTree:
        """Copy where the sequences stand: observations [B, M], simulator_state [B, S]."""
        return {
            "observations": torch.from_numpy(rollout.observations.copy()),
            "simulator_state": torch.from_numpy(rollout.states.copy()),
        }

    def _make(self) -> TaskEnv:
        t = self.task
        config = EnvConfig(action_repeat=t.action_repeat, episode_steps=UNLIMITED, terminates=t.terminates)
        env = make_env(t.name, config)
        env.reset(seed=0)
        return env
