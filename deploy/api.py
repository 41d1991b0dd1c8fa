"""QT-TDM in Python: `qttdm.train`, `load`, `evaluate`, `metrics`, `plot`. Mistakes are a ConfigError of one line.

run = qttdm.train(MyEnv, env_steps=20_000, **{"env.episode_steps": 200})
agent = qttdm.load(run)
observation, _ = env.reset()
agent.reset()
action = agent.act(observation)  # both in the environment's own units
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qttdm.actors.evaluation import Evaluation
from qttdm.common.config import ConfigError
from qttdm.common.environments.own import GIVEN
from qttdm.common.environments.parts import flatten
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.runs.training import make_directory, train_in
from qttdm.deploy.screens.plot import plot_runs

Env = str | Callable[[], gymnasium.Env[Any, Any]]
"""A task's name, an environment's class, or a function that makes one."""


def train(
    env: Env | None = None,
    /,
    preset: str = "laptop",
    *,
    agent: str | None = None,
    seed: int | None = None,
    env_steps: int | None = None,
    run_dir: str | Path | None = None,
    max_minutes: float | None = None,
    **settings: Any,
) -> Path:
    """Train an agent on this machine, and return the run's directory.

    env: default: dmc/cartpole-swingup; by keyword, `env=MyEnv`, too, where a mapping is settings. preset, agent, seed,
    env_steps, run_dir, max_minutes: as the options of `qttdm train`. settings: any others, as `qttdm config` lists
    them: dotted, `**{"env.episode_steps": 200}`, or nested, `env={"episode_steps": 200}`.
    An interrupt saves, and returns too. ConfigError, before anything is written, if something does not fit.
    """
    if "env" in settings and not isinstance(settings["env"], Mapping):
        if env is not None:
            raise ConfigError(f"train: got two environments, {env!r} and env={settings['env']!r}; want one")
        env = settings.pop("env")
    env = "dmc/cartpole-swingup" if env is None else env
    items = [*_overrides(settings), *([] if env_steps is None else [f"training.env_steps={_plain(env_steps)}"])]
    config = load_run_config(preset_path(preset), items, task=_named(env), seed=seed, agent=agent)
    config, directory = make_directory(config, None if run_dir is None else _path(run_dir, "train: run_dir"))
    resumable = not config.task.startswith(("given:", "__main__:"))
    train_in(directory, partial(new_run, config, directory), max_minutes, resumable)
    return directory.path


class Agent:
    """A run's policy with the weights of its newest checkpoint: acts without exploring, and without an environment."""

    def __init__(self, run: str | Path, seed: int = 0) -> None:
        """run: a run, or one of its checkpoints. seed: what the planner draws follows from it. ConfigError."""
        self._trained = TrainedAgent(_path(run, "load"))
        if [*self._trained.data.observations] != ["observations"]:
            raise ConfigError(
                f"{run}: its agent observes {', '.join(self._trained.data.observations)}; want `evaluate`"
            )
        self._seed, self._started = seed, 0
        self._episodes: list[Any] | None = None

    def reset(self) -> None:
        """Begin new episodes, as many as the next `act` has observations for. Call it at each reset."""
        self._episodes = []

    def act(self, observation: ArrayLike | Mapping[str, Any]) -> NDArray[Any]:
        """Act on what the environment shows: [M] or a Dict space's -> an action in the environment's units and shape.

        A batch of B episodes side by side, [B, M] or a Dict of [B, ..] -> [B, ..]. ConfigError for another shape, for
        what is not finite, and where `reset` is missing.
        """
        rows, one = self._rows(observation)
        if self._episodes is None:
            raise ConfigError("act: no episode has begun; call reset() first, and again at each episode's start")
        if not self._episodes:
            self._episodes = [self._begin() for _ in rows]
        if len(self._episodes) != len(rows):
            raise ConfigError(
                f"act: got {len(rows)} observations, {len(self._episodes)} episodes have begun; reset() first"
            )
        spec = self._trained.spec
        actions = spec.in_units(self._trained.policy.decide(self._episodes, {"observations": rows}).actions)
        if spec.action_shape is not None:
            actions = actions.reshape(-1, *spec.action_shape)
        return actions[0] if one else actions

    def _begin(self) -> Any:
        self._started += 1
        return self._trained.policy.start(derive_seed(self._seed, "acting", self._started), 0.0)

    def _rows(self, observation: ArrayLike | Mapping[str, Any]) -> tuple[NDArray[Any], bool]:
        """Return observations as float32 [B, M], or images, and whether there was one alone."""
        spec = self._trained.spec
        if spec.image_shape is not None:
            return _images(observation, spec.image_shape)
        if isinstance(observation, Mapping) and spec.observation_parts:
            try:
                rows, one = flatten(spec.observation_parts, observation)
            except ValueError as error:
                raise ConfigError(f"act: {error}") from None
        else:
            try:
                rows = np.asarray(observation, np.float32)
            except (TypeError, ValueError):
                raise ConfigError(
                    f"act: got a {type(observation).__name__}, want numbers of shape ({spec.obs_dim},)"
                ) from None
            one = rows.ndim != 2 or rows.shape[1] != spec.obs_dim
        if one and rows.size != spec.obs_dim:
            raise ConfigError(
                f"act: got an observation of shape {rows.shape}, want ({spec.obs_dim},) or (B, {spec.obs_dim})"
            )
        if not np.isfinite(rows).all():
            raise ConfigError("act: got an observation with NaN or infinity in it, want finite numbers")
        return rows.reshape(-1, spec.obs_dim), one


def _images(observation: Any, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], bool]:
    """Return images, or grids of bools, as uint8 [B, height, width, channels], and whether there was one alone."""
    array = np.asarray(observation)
    shapes = [shape, shape[:2]] if shape[2] == 1 else [shape]
    one = array.shape in shapes
    if array.dtype not in (np.uint8, np.bool_) or not (one or array.shape[1:] in shapes):
        raise ConfigError(
            f"act: got {array.dtype} of shape {array.shape}, want an image, uint8 {shape}, or a batch of them"
        )
    images = array.astype(np.uint8) * np.uint8(255) if array.dtype == np.bool_ else array
    return images.reshape(-1, *shape), one


def load(run: str | Path, seed: int = 0) -> Agent:
    """Load a trained agent: see `Agent`."""
    return Agent(run, seed)


def evaluate(run: str | Path, episodes: int = 10) -> Evaluation:
    """Act in the run's task for so many episodes, the same start states every time: `returns`, `success`."""
    episodes = _plain(episodes)
    if type(episodes) is not int or episodes < 1:
        raise ConfigError(f"evaluate: got episodes={episodes!r}, want a whole number, at least 1")
    return TrainedAgent(_path(run, "evaluate")).evaluate(episodes)


def metrics(run: str | Path) -> Any:
    """Read a run's metrics, a row for each line of metrics.jsonl: a pandas DataFrame, or dicts where pandas is missing.

    `kind` says what a row is of: `train` an episode, `update` some updates, `eval` an evaluation: docs/metrics.md.
    """
    rows = read_metrics(RunDir.open(_path(run, "metrics")).metrics_path)
    if importlib.util.find_spec("pandas") is None:
        return rows
    return importlib.import_module("pandas").DataFrame(rows)


def plot(*runs: str | Path, out: str | Path | None = None) -> Path:
    """Draw the runs' curves, with intervals over seeds, and print their table; returns the picture's path.

    out: default: curve.png in the first run.
    """
    if not runs:
        raise ConfigError("plot: got no runs; want qttdm.plot(run, ..)")
    paths = [_path(run, "plot") for run in runs]
    path = RunDir.open(paths[0]).curve_path if out is None else _path(out, "plot: out")
    print(plot_runs(paths, path))
    return path


def _path(path: str | Path, asked: str) -> Path:
    """Return a path. ConfigError if it is something else."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{asked}: got {path!r:.60}, want a path")
    return Path(path)


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Write settings as `--set` takes them."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _overrides(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={json.dumps(_plain(value), default=_plain)}"


def _plain(value: Any) -> Any:
    """Return a number of NumPy's as Python's, and a whole one as an integer. ConfigError if YAML has no such value."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is not None and not isinstance(value, str | int | float | list | tuple):
        raise ConfigError(f"train: got {value!r:.60} among the settings, want numbers, text, lists and mappings")
    return value


def _named(env: Env) -> str:
    """Return the task's name of an environment; a function without a place of its own is remembered under one."""
    if isinstance(env, str):
        return env
    if isinstance(env, gymnasium.Env) or not callable(env):
        what = f"an environment, {env}" if isinstance(env, gymnasium.Env) else repr(env)
        raise ConfigError(
            f"train: got {what}; want a task's name, an environment's class, or a function that makes one"
        )
    module, name = getattr(env, "__module__", ""), getattr(env, "__qualname__", "")
    if getattr(sys.modules.get(module), name, None) is env:
        return f"{module}:{name}"
    given = f"given:{uuid4().hex[:12]}"
    GIVEN[given] = env
    return given
