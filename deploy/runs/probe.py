"""Try a task before anything is learned: do random actions give what its spaces declare, and what are they like?

probe: a few decisions, as `qttdm train` makes them first; try_out: seconds of them, as `qttdm check` reports
"""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env, make_raw
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.metrics.watchdog import announced

CHECKS = 10
"""resets and steps that check_env makes, at most"""
REARM_EVERY = 1.0
"""seconds: it takes as long as a step of a fast environment"""


@dataclass
class Sample:
    """What random actions gave."""

    observations: list[np.ndarray] = field(default_factory=list)
    """after each decision, [M]"""
    rewards: list[float] = field(default_factory=list)
    """of each decision"""
    env_steps: int = 0
    episodes: int = 0
    """that ended"""
    terminated: int = 0
    """of these"""
    seconds: float = 0.0


def probe(env: TaskEnv, decisions: int, hang_seconds: float, seed: int = 0, seconds: float = float("inf")) -> Sample:
    """Take random actions, so many decisions or seconds long. ConfigError naming the task and what was wrong.

    What hangs without giving Python a turn, in C, ends the process, with one line.
    """
    with ended_if_stuck(env.task_spec.name, hang_seconds) as rearm:
        return _sample(env, decisions, hang_seconds, seed, seconds, rearm)


def _sample(
    env: TaskEnv, decisions: int, hang_seconds: float, seed: int, seconds: float, rearm: Callable[[], bool]
) -> Sample:
    task, rng, sample = env.task_spec.name, np.random.default_rng(seed), Sample()
    began, ended = time.perf_counter(), True
    rearm_at = began
    while len(sample.rewards) < decisions and time.perf_counter() - began < seconds:
        if time.perf_counter() >= rearm_at:
            rearm()
            rearm_at = time.perf_counter() + REARM_EVERY
        if ended:
            with _names(task, "reset", hang_seconds):
                observation, _ = env.reset(seed=seed + sample.episodes)
            _check_observation(env, "reset", observation)
        action = _random_action(env.task_spec, rng)
        with _names(task, "step", hang_seconds):
            observation, reward, terminated, truncated, info = env.step(action)
        _check_observation(env, "step", observation)
        if not np.isfinite(reward):
            raise ConfigError(f"{task}: step returned {reward} as the reward, want a finite number")
        try:
            float(0 if info.get("success") is None else info["success"])
        except (TypeError, ValueError):
            got = repr(info["success"])
            raise ConfigError(f'{task}: step returned {got:.40} as info["success"], want a number or a bool') from None
        sample.observations.append(observation)
        sample.rewards.append(reward)
        sample.env_steps += info["env_steps"]
        ended = terminated or truncated
        sample.episodes += ended
        sample.terminated += terminated
    sample.seconds = time.perf_counter() - began
    return sample


def _random_action(spec: TaskSpec, rng: np.random.Generator) -> Any:
    if spec.choices is not None:
        return rng.integers(spec.choices)
    return rng.uniform(-1, 1, spec.action_dim).astype(np.float32)


def _check_observation(env: TaskEnv, said_by: str, observation: np.ndarray) -> None:
    spec, task = env.task_spec, env.task_spec.name
    if observation.shape != spec.obs_shape:
        got, want = spec.describe_mismatch(observation)
        raise ConfigError(f"{task}: {said_by} returned an observation of {got}, its space declares {want}")
    if not np.isfinite(observation).all():
        where = int(np.flatnonzero(~np.isfinite(observation))[0])
        raise ConfigError(f"{task}: {said_by} returned {observation[where]} in the observation, at number {where}")


@contextmanager
def ended_if_stuck(task: str, hang_seconds: float) -> Iterator[Callable[[], bool]]:
    """End this process, with one line, if there is no sign of life for too long.

    Yields how to give one; that returns False, so that it can stand where `should_stop` is asked.

    Too long: twice hang_seconds, for a reset and a step, and a bit, since raising is better where that is possible.
    """
    with TemporaryDirectory(prefix="qttdm-") as folder, (path := Path(folder) / "simulator.txt").open("w") as file:
        advice = f"{task}: making, a reset or a step has taken more than {hang_seconds:g} s (cluster.hang_seconds)"
        with announced([path], advice):

            def rearm() -> bool:
                faulthandler.dump_traceback_later(2 * hang_seconds + 2, exit=True, file=file)
                return False

            try:
                rearm()
                yield rearm
            finally:
                faulthandler.cancel_dump_traceback_later()


@contextmanager
def _names(task: str, what: str, hang_seconds: float) -> Iterator[None]:
    """Turn what an environment raises, or that it hangs, into one line. Hanging is seen in the main thread only."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise ConfigError(f"{task}: {what} has taken more than {hang_seconds:g} s (cluster.hang_seconds)")

    alarm = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGALRM, hung) if alarm else None
    try:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, hang_seconds)
        yield
    except ConfigError:
        raise
    except Exception as error:  # it is anyone's code
        raise ConfigError(f"{task}: {what} raised {type(error).__name__}: {error}") from error
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


@contextmanager
def guarded(task: str, what: str, hang_seconds: float) -> Iterator[None]:
    """Turn what an environment raises, or that it hangs, into a ConfigError; if it hangs in C, end the process."""
    with ended_if_stuck(task, hang_seconds), _names(task, what, hang_seconds):
        yield


def make_probed(task: str, config: EnvConfig, hang_seconds: float) -> TaskEnv:
    """Make the environment. ConfigError also if that hangs."""
    with guarded(task, "making it", hang_seconds):
        return make_env(task, config)


def complaints(task: str, hang_seconds: float) -> list[str]:
    """List what Gymnasium's own check_env says of the environment, each in one line."""
    env = make_raw(task).env
    with (
        guarded(task, "check_env", CHECKS * hang_seconds),
        warnings.catch_warnings(record=True) as caught,
        closing(env),
    ):
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=True, skip_close_check=True)
            failed = []
        except ConfigError:  # it hangs
            raise
        except Exception as error:
            failed = [f"{type(error).__name__}: {error}"]
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    ours = (
        "symmetric and normalized space",
        "different from the unwrapped version",
    )  # actions are scaled, games wrapped
    said = [text for text in said if not any(part in text for part in ours)]
    return [" ".join(text.replace("\x1b[33mWARN: ", "").replace("\x1b[0m", "").split()) for text in [*failed, *said]]


def is_reproducible(task: str, config: EnvConfig, hang_seconds: float) -> bool:
    """Say whether two environments with one seed give one episode's first 20 decisions."""
    samples: list[Any] = []
    for _ in range(2):
        with closing(make_env(task, config)) as env:
            samples.append(probe(env, 20, hang_seconds, seed=1))
    first, second = samples
    return np.array_equal(first.observations, second.observations) and first.rewards == second.rewards
