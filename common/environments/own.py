"""A user's own environment by its place, MODULE:NAME: a class, or a function that makes one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import gymnasium

from qttdm.common.config import ConfigError
from qttdm.common.environments.task_env import RawTask
from qttdm.common.own_modules import find_own

GIVEN: dict[str, Callable[..., gymnasium.Env[Any, Any]]] = {}
"""What `qttdm.train` was handed that no module holds, by the name it has as a task: this process alone can make it."""

SPACES = "observation_space", "action_space"


def make(name: str) -> RawTask:
    """Import the module, from the working directory or installed, and make one environment. ConfigError, one line."""
    module, _, attribute = name.partition(":")
    gone = module == "given" and name not in GIVEN
    gone |= module == "__main__" and not hasattr(sys.modules[module], attribute)
    if gone:
        raise ConfigError(f"{name}: another program handed it to qttdm.train; put it into a module to use it again")
    try:
        maker = GIVEN[name] if module == "given" else find_own(name)
        draws = "render_mode" in inspect.signature(maker).parameters
        env = maker(render_mode="rgb_array") if draws else maker()
        spaces = {space: getattr(env, space, None) for space in SPACES}
    except ConfigError:
        raise
    except Exception as error:  # it is anyone's code
        raise ConfigError(f"{name} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"{name}() is a {type(env).__name__}, want a gymnasium.Env")
    for space in SPACES:
        if not isinstance(spaces.get(space), gymnasium.Space):
            raise ConfigError(f"{name}: has no {space}; want one of gymnasium.spaces, such as Box(-1, 1, (2,))")
    # Gymnasium does not declare whether an environment terminates: assume it may.
    limit = env.spec.max_episode_steps if env.spec else None
    return RawTask(env, limit, terminates=True)
