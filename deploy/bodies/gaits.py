"""A gait for each body of the universe, found by search in the simulator: the expert of many bodies.

    Body.starts --states--> Body.roll(states, actions) --> observations, rewards     mujoco.rollout, many at once
    search: RANDOM gaits, then ROUNDS times NEAR around the best

A gait moves every joint as a sine of one frequency. It looks at nothing, is near-expert, and differs from body to body.
Letters beyond the usual: G gaits, T decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from mujoco import rollout
from numpy.typing import NDArray

from qttdm.common.environments import bodies as universe
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env

RANDOM, ROUNDS, NEAR = 200, 2, 50
SEARCH_SECONDS = 5.0
"""of an episode, in which a gait is judged"""
FREQUENCIES = (0.5, 3.0)
"""Hz"""
STEP = 0.15
"""of the search around the best: standard deviation, of each number's range"""
FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gaits:
    """G of them; every number is in [0, 1], a share of its range."""

    amplitudes: Floats
    """[G, N]: of the action, 0 to 1"""
    phases: Floats
    """[G, N]: 0 to 2 pi"""
    offsets: Floats
    """[G, N]: of the action, -1 to 1"""
    frequencies: Floats
    """[G]: in FREQUENCIES"""

    def actions(self, times: Floats) -> NDArray[np.float32]:
        """Act at times [T], in seconds: [G, T, N]."""
        low, high = FREQUENCIES
        angular = 2 * np.pi * (low + (high - low) * self.frequencies)  # [G]
        turn = angular[:, None, None] * times[:, None] + 2 * np.pi * self.phases[:, None]  # [G, T, N]
        acted = (2 * self.offsets - 1)[:, None] + self.amplitudes[:, None] * np.sin(turn)
        return np.clip(acted, -1, 1).astype(np.float32)

    def take(self, index: Any) -> Gaits:
        """Take some of them, by an index of the first dimension."""
        return Gaits(*(array[index] for array in vars(self).values()))

    def near(self, count: int, rng: np.random.Generator) -> Gaits:
        """Draw gaits near one (G = 1); phases go round, all else stays in its range."""
        moved = {name: a + STEP * rng.normal(size=(count, *a.shape[1:])) for name, a in vars(self).items()}
        return Gaits(**{name: a % 1 if name == "phases" else np.clip(a, 0, 1) for name, a in moved.items()})


class Body:
    """One body, simulated many times over at once; exactly what its environment would do."""

    def __init__(self, task: str, config: EnvConfig, threads: int) -> None:
        """task: universe/FAMILY-SEED. threads: of mujoco.rollout."""
        family, _, seed = task.removeprefix("universe/").rpartition("-")
        self.env = make_env(task, config)
        self.spec = self.env.task_spec
        self.decision_seconds = self.spec.action_repeat * universe.CONTROL_SECONDS
        self._model = mujoco.MjModel.from_xml_string(universe.mjcf(family, int(seed)))
        self._data = [mujoco.MjData(self._model) for _ in range(threads)]
        self._rollout = rollout.Rollout(nthread=threads if threads > 1 else 0)

    def times(self, decisions: int) -> Floats:
        """Return when decisions are made, in seconds from the start: [T]."""
        return np.arange(decisions, dtype=np.float64) * self.decision_seconds

    def starts(self, seeds: list[int]) -> tuple[Floats, Floats]:
        """Reset by each seed: states [B, S] and what MuJoCo's solver begins from there, [B, N + 6]."""
        states, warm = [], []
        data = self._data[0]
        for seed in seeds:
            self.env.reset(seed=seed % 2**31)  # as an episode of any agent
            whole = self.env.unwrapped.simulator_state()  # type: ignore[attr-defined]
            mujoco.mj_setState(self._model, data, whole, mujoco.mjtState.mjSTATE_INTEGRATION)
            states.append(np.empty(mujoco.mj_stateSize(self._model, FULL)))
            mujoco.mj_getState(self._model, data, states[-1], FULL)
            warm.append(data.qacc_warmstart.copy())
        return np.stack(states), np.stack(warm)

    def roll(
        self, starts: tuple[Floats, Floats], actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take actions [B, T, N] from B starts (or one): observations float32 [B, T+1, M], rewards [B, T]."""
        repeat, substeps = self.spec.action_repeat, universe.SUBSTEPS
        controls = np.repeat(actions.astype(np.float64), repeat * substeps, axis=1)
        # MuJoCo's sensors show where a step began: one step more shows where the last one ended.
        controls = np.concatenate([controls, controls[:, -1:]], axis=1)
        first, warm = (np.broadcast_to(a, (len(actions), a.shape[1])) for a in starts)
        states, sensed = self._rollout.rollout(
            self._model, self._data, first, controls, initial_warmstart=warm, skip_checks=False
        )
        every = repeat * substeps
        shown = np.concatenate([first[:, None], states[:, every - 1 : -1 : every]], axis=1)  # [B, T+1, S]
        nq, nv = self._model.nq, self._model.nv
        parts = universe.observe(shown[..., 1 : 1 + nq], shown[..., 1 + nq : 1 + nq + nv])  # the first is the time
        speeds = sensed[:, substeps::substeps, 0].reshape(len(actions), -1, repeat)  # after each control step
        rewards = universe.reward_of(speeds).sum(axis=-1)
        return np.concatenate(list(parts.values()), axis=-1, dtype=np.float32), rewards.astype(np.float32)


def search(body: Body, rng: np.random.Generator) -> Gaits:
    """Find the gait (G = 1) that earns most in SEARCH_SECONDS, from one start."""
    joints, decisions = body.spec.action_dim, max(1, round(SEARCH_SECONDS / body.decision_seconds))
    start = body.starts([int(rng.integers(2**31))])

    def best_of(gaits: Gaits) -> tuple[Gaits, float]:
        total = body.roll(start, gaits.actions(body.times(decisions)))[1].sum(axis=1)
        return gaits.take(slice(best := int(total.argmax()), best + 1)), float(total[best])

    amplitudes, phases, offsets = rng.random((3, RANDOM, joints))
    # Offsets near the middle: a joint at its stop moves nothing.
    found, most = best_of(Gaits(amplitudes, phases, 0.25 + offsets / 2, rng.random(RANDOM)))
    for _ in range(ROUNDS):
        other, total = best_of(found.near(NEAR, rng))
        found, most = (other, total) if total > most else (found, most)
    return found
