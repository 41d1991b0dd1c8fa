"""From a task's name, FAMILY/NAME or MODULE:NAME, to an environment in Gymnasium's conventions.

make_env -> family module (dmc, metaworld, gym; own for MODULE:NAME): the library's environment, not yet limited in time
         -> Gymnasium's wrappers: time limit, flat float32 observation, action [N] in [-1, 1]
         -> TaskEnv: action repeat
"""

from __future__ import annotations

import importlib
import warnings
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.images import as_image, image_shape, looks_like_an_image
from qttdm.common.environments.parts import leaves, parts_of
from qttdm.common.environments.rendering import choose_gl
from qttdm.common.environments.task_env import RawTask, TaskEnv
from qttdm.common.extras import Extra, missing, need

FAMILIES = ("dmc", "metaworld", "minatar", "atari", "gym", "universe", "dmc-random")
"""Each is a module here with `names() -> list[str]` and `make(name) -> RawTask`."""
NUMBERED = ("universe", "dmc-random")
"""of dmc's extra: what they make is called NAME-SEED, without end"""
LOGS = "logs/"
"""begins the name of a task of which there is a data set and no simulator"""
OPTIONAL: dict[str, Extra] = {"dmc": "dmc", "metaworld": "metaworld", "minatar": "atari", "atari": "atari"}
"""families whose packages are in an extra"""


def list_tasks() -> list[str]:
    """List every task of the families that are installed, and of Gymnasium's own those without a simulator to install.

    `gym/ID` is any registered environment with bounded Box or Discrete actions. Bodies by number: `list_numbered`.
    """
    there = [family for family, extra in OPTIONAL.items() if not missing(extra)]
    optional = [f"{family}/{name}" for family in there for name in _load(family).names()]
    return [*optional, *(f"gym/{name}" for name in _load("gym").small_names())]


def list_numbered() -> list[str]:
    """List what comes with a seed at its end, each as FAMILY/NAME-<seed>; [] if dmc is not installed."""
    families = () if missing("dmc") else NUMBERED
    return [f"{family}/{name}-<seed>" for family in families for name in _load(family).names()]


def need_family(task: str) -> None:
    """Check that the packages of the task's family are installed. ConfigError naming their extra."""
    for family, extra in OPTIONAL.items():
        if task.startswith(f"{family}/"):
            need(extra, task)
    if task.startswith(tuple(f"{family}/" for family in NUMBERED)):
        need("dmc", task)


def make_env(task: str, config: EnvConfig, with_state: bool = False, training: bool = False) -> TaskEnv:
    """Make the environment of a task such as dmc/walker-walk, metaworld/reach, gym/Pendulum-v1 or my_module:MyEnv.

    with_state: observe the simulator's state too, as `simulator_state`. training: `life_loss_ends` holds.
    Raises ConfigError, in one line, for a name that does not exist and for spaces the agent cannot use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds that lose digits as float32; nothing a user could act on
        return _wrap(task, make_raw(task), config, with_state, training)


def make_raw(task: str) -> RawTask:
    """Make the library's environment, as it is. ConfigError, in one line, for a name that does not exist."""
    family, name = _resolve(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices about versions
        raw: RawTask = family.make(name)
        return raw


def _load(family: str) -> ModuleType:
    """Import the family's module on first use: these libraries take seconds."""
    choose_gl()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"qttdm.common.environments.{family.replace('-', '_')}")


def _resolve(task: str) -> tuple[ModuleType, str]:
    """Find the family's module and the name within it; ConfigError naming the nearest tasks if there is none."""
    need_family(task)
    if task.startswith(LOGS):
        raise ConfigError(
            f"{task} has no simulator to act in: it is known by its data set; want qttdm serve, or eval --policy-only"
        )
    if ":" in task and "/" not in task:
        return _load("own"), task
    family, slash, name = task.partition("/")
    if not slash or family not in FAMILIES:
        raise _unknown(task, list_tasks())
    module = _load(family)
    if family in NUMBERED:
        stem, _, seed = name.rpartition("-")
        if stem not in (names := module.names()) or not (seed.isdecimal() and seed.isascii()):
            raise _unknown(task, [f"{family}/{known}-<seed>" for known in names])
        return module, name
    third_party = family == "gym" and ":" in name  # Gymnasium's MODULE:ID, known once the module is imported
    if not third_party and name not in (names := module.names()):
        raise _unknown(task, [f"{family}/{known}" for known in names])
    return module, name


def _unknown(task: str, known: list[str]) -> ConfigError:
    nearest = get_close_matches(task, known)
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"want FAMILY/NAME with FAMILY one of {', '.join(FAMILIES)}"
    return ConfigError(
        f"unknown task {task!r}; {hint}; an own environment is MODULE:CLASS, such as "
        f"my_module:MyEnv, or gym/MODULE:ID where Gymnasium has it registered"
    )


def _wrap(task: str, raw: RawTask, config: EnvConfig, with_state: bool, training: bool) -> TaskEnv:
    """Apply the time limit, flatten, rescale and repeat; ConfigError for what cannot be presented that way."""
    check_spaces(task, raw.env.observation_space, raw.env.action_space)
    if with_state and raw.simulator_state == 0:
        raise ConfigError(f"{task} cannot show its simulator's state; want a dmc task (not dmc/quadruped-escape)")
    episode_steps = config.episode_steps or raw.episode_steps
    if episode_steps is None:
        raise ConfigError(f"{task} has no time limit of its own; want one in its steps: --set env.episode_steps=200")
    env = raw.env
    if config.life_loss_ends:
        if raw.by_life is None:
            raise ConfigError(f"env.life_loss_ends=true: {task} has no lives; want false, or a task atari/..")
        env = raw.by_life(env) if training else env
    limited = wrappers.TimeLimit(env, max_episode_steps=episode_steps)
    image = image_shape(raw.env.observation_space)
    if image is None:
        shown: gymnasium.Env = wrappers.DtypeObservation(wrappers.FlattenObservation(limited), np.float32)
    else:
        shown = as_image(limited, image)
    acted, acting = _actions(shown, raw.env.action_space)
    spec = TaskSpec(
        obs_dim=spaces.flatdim(shown.observation_space),
        action_repeat=config.action_repeat,
        episode_steps=episode_steps,
        terminates=raw.terminates if config.terminates is None else config.terminates,
        name=task,
        simulator_state=raw.simulator_state,
        observation_parts=raw.observation_parts or parts_of(raw.env.observation_space),
        step_seconds=_step_seconds(raw.env),
        image_shape=image,
        **acting,
    )
    return TaskEnv(acted, spec, with_state)


def _actions(env: gymnasium.Env, action: spaces.Space) -> tuple[gymnasium.Env, dict[str, Any]]:
    """Take actions [N] in [-1, 1], or choices from 0 on; and what TaskSpec says of them."""
    if isinstance(action, spaces.Discrete):
        first, choices = int(action.start), int(action.n)
        inside = spaces.Discrete(choices)
        taken: gymnasium.Env = wrappers.TransformAction(env, lambda choice: first + int(choice), inside)
        return taken, {"action_dim": 1, "choices": choices, "first_choice": first}
    assert isinstance(action, spaces.Box), action
    one = np.ones(action.shape, dtype=np.float32)
    taken = wrappers.RescaleAction(env, min_action=-one, max_action=one)
    if one.ndim != 1:
        vector = spaces.Box(-1.0, 1.0, (one.size,), np.float32)
        taken = wrappers.TransformAction(taken, lambda action: action.reshape(one.shape), vector)
    bounds = tuple(map(float, action.low.flat)), tuple(map(float, action.high.flat))
    return taken, {
        "action_dim": one.size,
        "action_bounds": bounds,
        "action_shape": None if one.ndim == 1 else one.shape,
    }


def _step_seconds(env: gymnasium.Env) -> float | None:
    """Read `dt`, which MuJoCo's and some other environments have; frames per second are only how fast to play them."""
    seconds = getattr(env.unwrapped, "dt", None)
    return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < float("inf") else None


def check_spaces(task: str, observation: spaces.Space, action: spaces.Space) -> None:
    """Raise ConfigError unless actions are a bounded Box or Discrete, and observations one image or a vector."""
    if not isinstance(action, spaces.Box | spaces.Discrete):
        raise ConfigError(f"{task} needs a Box or Discrete action space, got {action}")
    if isinstance(action, spaces.Box) and not action.is_bounded():
        raise ConfigError(f"{task} has unbounded actions, which cannot be scaled to [-1, 1]: {action}")
    if not isinstance(observation, spaces.Box | spaces.Dict) or not observation.is_np_flattenable:
        raise ConfigError(f"{task} needs a Box observation space, or a Dict that flattens to one, got {observation}")
    if isinstance(observation, spaces.Box) and image_shape(observation) is not None:
        return
    if images := [s for s in leaves(observation).values() if looks_like_an_image(s)]:
        raise ConfigError(
            f"{task} observes an image, {images[0].dtype} {images[0].shape}; want one image alone, uint8 or bool, of "
            f"shape (height, width) or (height, width, channels), or numbers such as positions and velocities"
        )
