"""Any environment registered with Gymnasium (ID, or MODULE:ID) whose actions are a bounded Box, or Discrete."""

from __future__ import annotations

from typing import Any

import gymnasium

from qttdm.common.config import ConfigError
from qttdm.common.environments.task_env import RawTask
from qttdm.common.own_modules import import_own


def names() -> list[str]:
    """List every registered id, whatever its action space: finding that out would mean building each one."""
    return list(gymnasium.registry)


def small_names() -> list[str]:
    """List the newest of Gymnasium's own that need nothing else installed: its classic control."""
    newest: dict[str, tuple[int, str]] = {}
    for spec in gymnasium.registry.values():
        if str(spec.entry_point).startswith("gymnasium.envs.classic_control"):
            newest[spec.name] = max(newest.get(spec.name, (0, "")), (spec.version or 0, spec.id))
    return [name for _, name in newest.values()]


def make(name: str) -> RawTask:
    """Make one environment, without its registered time limit; ConfigError if its constructor fails."""
    module, _, bare = name.rpartition(":")
    try:
        if module:
            import_own(module)
        env = _construct(name)
    except Exception as error:  # the constructor is anyone's code
        raise ConfigError(f"gym/{name} cannot be made: {type(error).__name__}: {error}") from error
    spec = gymnasium.spec(bare)  # as registered: env.spec has already lost its limit
    # Gymnasium does not declare whether an environment terminates: assume it may.
    return RawTask(env, spec.max_episode_steps, terminates=True)


def _construct(name: str) -> gymnasium.Env[Any, Any]:
    """Construct it, able to draw frames if its constructor takes a render_mode."""
    options: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
    try:
        # Nothing is drawn before render(), but Gymnasium wants to know at construction.
        return gymnasium.make(name, **options, render_mode="rgb_array")
    except TypeError as error:
        if "render_mode" not in str(error):
            raise
        return gymnasium.make(name, **options)
