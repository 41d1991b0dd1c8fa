"""qttdm offline: learn from logged episodes alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qttdm.common.config import ConfigError
from qttdm.deploy.cli.options import Choice, Count, Positive, Seed

if TYPE_CHECKING:
    from qttdm.deploy.configs.run_config import RunConfig

Mode = Literal["offline", "imitate", "goal"]


def offline(
    *,
    dataset: str,
    mode: Mode | None = None,
    goal: str | None = None,
    updates: Count | None = None,
    episodes: Count | None = None,
    choice: Choice = Choice(),
    seed: Seed | None = None,
    run_dir: Path | None = None,
    max_minutes: Positive | None = None,
) -> None:
    """Train an agent from logged episodes alone, and evaluate it: docs/offline.md.

    A run as any other: eval, serve, plot and train --resume take it. The preset is tt-laptop if none is named.

    Args:
        dataset: a Minari data set, by id or folder
        mode: of the Trajectory Transformer: search for return, imitate, or imitate what leads to a goal
        goal: observation that evaluations are to reach, such as 0.5,-1
        updates: how many are made on it
        episodes: so many of its episodes alone, drawn by the seed
        seed: every random stream derives from it
        run_dir: default: runs/<task>-<time>; must not exist
        max_minutes: end cleanly after so long
    """
    from qttdm.deploy.runs.local import new_run
    from qttdm.deploy.runs.training import make_directory, train_in

    config, directory = make_directory(settings_of(choice, dataset, mode, goal, updates, episodes, seed), run_dir)
    train_in(directory, partial(new_run, config, directory), max_minutes)


def of_mode(mode: Mode | None, goal: str | None) -> list[str]:
    """Make the settings that --mode and --goal stand for. ConfigError if the goal is not made of numbers."""
    section = "trajectory-transformer.planner"
    items = [] if mode is None else [f"{section}.mode={'offline' if mode == 'offline' else 'imitate'}"]
    if goal is not None:
        try:
            numbers = [float(number) for number in goal.split(",")]
        except ValueError:
            raise ConfigError(f"--goal: got {goal!r}, want numbers as they are observed, such as 0.5,-1") from None
        items.append(f"{section}.goal={json.dumps(numbers)}")
    return items


def settings_of(
    choice: Choice,
    name: str,
    mode: Mode | None,
    goal: str | None,
    updates: int | None,
    episodes: int | None,
    seed: int | None,
) -> RunConfig:
    """Resolve the settings of an offline run. ConfigError.

    The task and its action repeat are those that the data set was collected on, unless they are chosen; of a data set
    that does not say, the task is `logs/NAME`: there is no simulator, and nothing is evaluated.
    """
    from qttdm.common.environments.make import LOGS
    from qttdm.replay.datasets import open_all

    dataset = open_all(name)[0]
    items = [f"training.dataset={json.dumps(name)}", "training.env_steps=0"]
    task = choice.task or dataset.task
    if task is None:
        task = LOGS + name
        items.append("training.eval_episodes=0")
    elif choice.task is None and dataset.action_repeat is not None:
        items.append(f"env.action_repeat={dataset.action_repeat}")
    items += of_mode(mode, goal)
    if mode == "goal":
        items.append("trajectory-transformer.goals=true")
    if updates is not None:
        items.append(f"training.offline_updates={updates}")
    if episodes is not None:
        items.append(f"training.dataset_episodes={episodes}")
    preset = choice.preset or "tt-laptop"
    return replace(choice, preset=preset, task=task, set=(*items, *choice.set)).load(seed)
