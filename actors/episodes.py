"""The environment loop: a policy acts in E environments in lockstep until each has finished one episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from qttdm.common.contracts import Policy
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.episode import EnvironmentFailure, Episode
from qttdm.planner_service.policies.lockstep import Lockstep

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Stopped(Exception):  # noqa: N818 - not an error: someone asked
    """Collecting was asked to stop; the episodes in flight are dropped."""


def run_episodes(
    envs: Sequence[TaskEnv],
    policy: Policy,
    seeds: Sequence[int],
    exploration: float,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Callable[[TaskEnv], None] | None = None,
) -> list[Episode]:
    """Run one episode in each environment, fully determined by its seed and the policy's weights.

    seeds: one per environment, for the environment and the policy's own randomness. exploration in [0, 1], 0 when
    evaluating. should_stop: asked before each reset and before each decision. watch: called with the first environment
    after its reset and after each of its steps (for videos).
    Raises Stopped as soon as should_stop() holds, EnvironmentFailure when an environment breaks.
    """
    recordings = []
    for env, seed in zip(envs, seeds, strict=True):
        if should_stop():
            raise Stopped
        recordings.append(_Recording(_reset(env, seed)))
    episodes = Lockstep(policy, seeds, exploration)
    if watch:
        watch(envs[0])
    while any(not r.done for r in recordings):
        if should_stop():
            raise Stopped
        # An environment that is done keeps its place in the batch, so that the others' rows do not move.
        newest = [r.observations[-1] for r in recordings]
        actions = episodes.act({name: np.stack([o[name] for o in newest]) for name in newest[0]})  # [E, N]
        for i, (env, recording, seed) in enumerate(zip(envs, recordings, seeds, strict=True)):
            if recording.done:
                continue
            with _failures_of(env, f"at decision {len(recording.actions) + 1}", seed):
                outcome = env.step(actions[i])
                _check(env, outcome[0], outcome[1])
                recording.add(env.observe(outcome[0]), actions[i], outcome, policy.weights_version)
            if watch and i == 0:
                watch(env)
    return [r.episode() for r in recordings]


def _reset(env: TaskEnv, seed: int) -> dict[str, np.ndarray]:
    """Return the episode's first observations, by name."""
    with _failures_of(env, "at the reset", seed):
        observation, _ = env.reset(seed=seed % 2**31)  # MuJoCo's seeds have 31 bits
        _check(env, observation, reward=0.0)
        return env.observe(observation)


@contextmanager
def _failures_of(env: TaskEnv, when: str, seed: int) -> Iterator[None]:
    """Turn any error raised inside into an EnvironmentFailure."""
    try:
        yield
    except Exception as error:  # simulators share no base class for "this state cannot be simulated"
        task = env.task_spec.name or type(env.unwrapped).__name__
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvironmentFailure(f"{task} failed {when} of the episode with seed {seed}: {what}") from error


def _check(env: TaskEnv, observation: np.ndarray, reward: float) -> None:
    """Raise ValueError for a wrong shape, FloatingPointError naming the first offender: observation [M]."""
    spec = env.task_spec
    if observation.shape != spec.obs_shape:
        got, want = spec.describe_mismatch(observation)
        raise ValueError(f"observation has {got}, its space declares {want}")
    if not np.isfinite(observation).all():
        worst = int(np.flatnonzero(~np.isfinite(observation))[0])
        raise FloatingPointError(f"observation[{worst}] is {observation[worst]}")
    if not abs(reward) <= FLOAT32_MAX:  # what an episode can keep
        raise FloatingPointError(f"the reward is {reward}")


class _Recording:
    """An episode under way."""

    def __init__(self, observations: dict[str, np.ndarray]) -> None:
        """observations: the first ones, by name."""
        self.observations = [observations]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.versions: list[int] = []
        self.env_steps = 0
        self.success: float | None = None
        self.terminated = self.done = False

    def add(self, observations: dict[str, np.ndarray], action: np.ndarray, outcome: tuple, version: int) -> None:
        """Add one decision: what is observed after it, by name, and what env.step answered."""
        _, reward, terminated, truncated, info = outcome
        self.observations.append(observations)
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.versions.append(version)
        self.env_steps += info["env_steps"]
        if (success := info.get("success")) is not None:
            self.success = float(success)
            if not np.isfinite(self.success):
                raise FloatingPointError(f'info["success"] is {success}')
        self.terminated, self.done = terminated, terminated or truncated

    def episode(self) -> Episode:
        rows = {name: np.stack([o[name] for o in self.observations]) for name in self.observations[0]}
        return Episode(
            observations=rows.pop("observations"),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            terminated=self.terminated,
            truncated=self.done and not self.terminated,
            env_steps=self.env_steps,
            success=self.success,
            oldest_weights=min(self.versions),
            newest_weights=max(self.versions),
            extra=rows,
        )
