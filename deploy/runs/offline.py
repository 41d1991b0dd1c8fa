"""Learn from logged episodes: settings that follow from a data set, and its episodes into replay.

    open_dataset --check(task)--> with_dataset: replay holds it whole, no random decisions
                 --episodes-----> fill, before the first update

An offline run is an ordinary one whose environment steps are 0: updates, evaluations, checkpoints and a resume are the
loop's. With more steps the agent goes on learning from its own episodes, which join the data set's in replay.
"""

from __future__ import annotations

from collections.abc import Callable

from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.make import LOGS
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.replay.datasets import open_dataset
from qttdm.replay.source import LocalShards

LOGGED = 2**20
"""number of the actor that a data set's episodes are named after; more than a cluster has"""


def logged_task(config: RunConfig) -> TaskSpec | None:
    """Describe the task from its data set; None if it has a simulator. ConfigError."""
    return open_dataset(config.task.removeprefix(LOGS)).task_spec if config.task.startswith(LOGS) else None


def with_dataset(config: RunConfig, task: TaskSpec) -> RunConfig:
    """Return the settings of a run that begins with its data set, if it names one. ConfigError if that does not fit."""
    if config.training.dataset is None:
        return config
    dataset = open_dataset(config.training.dataset)
    dataset.check(task)
    own = config.training.env_steps // task.action_repeat + task.episode_decisions
    held = max(config.replay.capacity, dataset.decisions) if config.training.env_steps == 0 else dataset.decisions + own
    return config.model_copy(
        update={
            "replay": config.replay.model_copy(update={"capacity": held}),
            "training": config.training.model_copy(update={"seed_decisions": dataset.decisions}),
        }
    )


def fill(replay: LocalShards, name: str, say: Callable[[str], object]) -> int:
    """Put a data set's episodes into replay; returns how many decisions they have. ConfigError, DiskError."""
    dataset = open_dataset(name)
    decisions = 0
    for episode in dataset.episodes(actor=LOGGED):
        replay.insert(episode)
        decisions += episode.decisions
    kept = f"{name}: {decisions:,} decisions in {dataset.stored_episodes - dataset.dropped:,} episodes"
    dropped = f", {dataset.dropped} dropped that hold NaN or an infinity" if dataset.dropped else ""
    clipped = f", {dataset.clipped:,} actions beyond the box clipped" if dataset.clipped else ""
    say(kept + dropped + clipped)
    return decisions
