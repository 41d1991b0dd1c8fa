"""Learn from logged episodes: settings that follow from a data set, and its episodes into replay.

    open_dataset --check(task)--> with_dataset: replay holds it whole, no random decisions
                 --episodes-----> fill, before the first update

An offline run is an ordinary one whose environment steps are 0: updates, evaluations, checkpoints and a resume are the
loop's. With more steps the agent goes on learning from its own episodes, which join the data set's in replay.
"""

from __future__ import annotations

from collections.abc import Callable

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.make import LOGS
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.replay.datasets import Dataset, open_all, open_dataset
from qttdm.replay.source import LocalShards

LOGGED = 2**20
"""number of the actor that a data set's episodes are named after; more than a cluster has"""


def logged_task(config: RunConfig) -> TaskSpec | None:
    """Describe the task from its data set; None if it has a simulator. ConfigError."""
    return open_dataset(config.task.removeprefix(LOGS)).task_spec if config.task.startswith(LOGS) else None


def datasets(config: RunConfig) -> list[Dataset]:
    """Open what a run learns from: its data set, or all of a group; with as many episodes as it wants. ConfigError."""
    assert config.training.dataset is not None
    opened = open_all(config.training.dataset)
    if config.training.dataset_episodes is not None:
        for dataset in opened:
            dataset.choose(config.training.dataset_episodes, config.seed)
    return opened


def mixture(config: RunConfig, task: TaskSpec) -> list[Dataset] | None:
    """Open the data sets of an agent that learns from many tasks at once; None for any other. ConfigError."""
    many = config.make_agent(task).data.many_tasks
    return datasets(config) if many and config.training.dataset is not None else None


def with_dataset(config: RunConfig, task: TaskSpec) -> RunConfig:
    """Return the settings of a run that begins with its data set, if it names one. ConfigError if that does not fit."""
    if config.training.dataset is None:
        return config
    mixed = mixture(config, task)
    if mixed is None:
        dataset, *others = datasets(config)
        if others:
            raise ConfigError(
                f"training.dataset={config.training.dataset} is a group of data sets, and {config.agent} learns from "
                f"one; want one of them, such as {dataset.name}"
            )
        dataset.check(task)
        decisions = dataset.decisions
        own = config.training.env_steps // task.action_repeat + task.episode_decisions
        held = max(config.replay.capacity, decisions) if config.training.env_steps == 0 else decisions + own
    else:
        if config.training.env_steps:
            raise ConfigError(
                f"training.env_steps={config.training.env_steps}: {config.agent} learns from data sets alone; want 0"
            )
        unknown = config.training.shares.keys() - {dataset.name for dataset in mixed}
        if unknown:
            known = ", ".join(dataset.name for dataset in mixed[:5])
            raise ConfigError(f"training.shares: there is no data set {sorted(unknown)[0]!r}; there are {known}, ..")
        decisions = sum(dataset.decisions for dataset in mixed)
        held = len(mixed) * max(dataset.decisions for dataset in mixed)
    return config.model_copy(
        update={
            "replay": config.replay.model_copy(update={"capacity": held}),
            "training": config.training.model_copy(update={"seed_decisions": decisions}),
        }
    )


def fill(replay: LocalShards, config: RunConfig, say: Callable[[str], object]) -> int:
    """Put the episodes that a run learns from into replay; returns how many decisions they have.

    ConfigError, DiskError.
    """
    decisions = 0
    for number, dataset in enumerate(datasets(config)):
        own = 0
        for episode in dataset.episodes(actor=LOGGED + number):
            replay.insert(episode)
            own += episode.decisions
        kept = f"{dataset.name}: {own:,} decisions in {dataset.stored_episodes - dataset.dropped:,} episodes"
        dropped = f", {dataset.dropped} dropped that hold NaN or an infinity" if dataset.dropped else ""
        clipped = f", {dataset.clipped:,} actions beyond the box clipped" if dataset.clipped else ""
        say(kept + dropped + clipped)
        decisions += own
    return decisions
