"""Any environment registered with Gymnasium (ID, or MODULE:ID) whose actions are a bounded Box."""

from __future__ import annotations

import gymnasium

from common.config import ConfigError
from common.environments.task_env import RawTask


def names() -> list[str]:
    """Every registered id, whatever its action space: finding that out would mean building each one."""
    return list(gymnasium.registry)


def make(name: str) -> RawTask:
    """One environment, without its registered time limit; ConfigError if what it depends on is not installed."""
    try:
        # Nothing is drawn before render(), but Gymnasium wants to know at construction.
        env = gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True, render_mode="rgb_array")
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"gym/{name} cannot be made: {' '.join(str(error).split())}") from error
    spec = gymnasium.spec(name.rpartition(":")[2])  # as registered: env.spec has already lost its limit
    # Gymnasium does not declare whether an environment terminates: assume it may.
    return RawTask(env, spec.max_episode_steps, terminates=True, has_success=False)
