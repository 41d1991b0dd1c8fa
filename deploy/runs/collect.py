"""`qttdm collect`: a data set of a run's own episodes, of the kinds that the literature compares on.

    random         uniform actions
    expert         the newest checkpoint, as in evaluation
    medium         the first checkpoint that was evaluated above the middle between both, exploring
    medium-replay  what the run had collected by then, as far as its replay still has it
    medium-expert  half of each

The middle, not half of the expert's return as in the literature: returns may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from qttdm.actors.episodes import run_episodes
from qttdm.common.checkpoint import CheckpointStore, load_checkpoint
from qttdm.common.config import ConfigError
from qttdm.common.contracts import Policy
from qttdm.common.episode import Episode
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.seeding import derive_seed
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.build import exploration, make_task_env
from qttdm.deploy.runs.trained import TrainedAgent, weights_in
from qttdm.planner_service.policies.random_actions import RandomPolicy
from qttdm.replay.codec import decode
from qttdm.replay.datasets import check_new, write_dataset
from qttdm.replay.log import records_in

Kind = Literal["random", "medium", "expert", "medium-replay", "medium-expert"]
Say = Callable[[str], object]
"""takes a line of progress"""
EPISODES = 100
"""of a data set, unless asked for otherwise"""
TOGETHER = 10
"""episodes that are decided for in one batch"""


def collect(agent: ActingAgent, kind: Kind, name: str, episodes: int | None, references: int, say: Say) -> str:
    """Write the data set of that id; returns a line about it.

    agent: a TrainedAgent, or for random actions any. episodes: None is EPISODES, and all there are of a replay.
    references: episodes to measure random actions and the expert by. ConfigError, before anything is written.
    """
    check_new(name)
    scores: dict[str, float] | None = None
    about: dict[str, object] = {"kind": kind, "seed": agent.config.seed, "env": agent.config.env.model_dump()}
    if isinstance(agent, TrainedAgent):
        run = Run(agent, references, say)
        chosen, scores = run.episodes(kind, episodes), run.scores
        about |= {"run": agent.run_dir.name, "agent": agent.config.agent, "reference_episodes": references}
        about |= {"expert": agent.loaded.name} | ({"medium": run.medium.name} if "medium" in kind else {})
    elif kind == "random":
        chosen = Collected(agent, say).of("random", RandomPolicy(agent.data), episodes or EPISODES)
    else:
        raise ConfigError(f"--kind {kind} acts with trained networks; want --run, a run of this task")
    folder = write_dataset(name, chosen, agent.spec, scores, **about)
    decisions = sum(episode.decisions for episode in chosen)
    measured = f" (random {scores['random']:.4g}, expert {scores['expert']:.4g})" if scores else ""
    return f"{folder}: {len(chosen)} episodes, {decisions:,} decisions, mean return {_mean(chosen):.4g}{measured}"


class Collected:
    """An agent's episodes by who acted, made as they are asked for; those that measure a policy are its first ones."""

    def __init__(self, agent: ActingAgent, say: Say) -> None:
        self.agent, self.say = agent, say
        self._made: dict[str, list[Episode]] = {}

    def of(self, name: str, policy: Policy, count: int, explore: float = 0.0) -> list[Episode]:
        """Return the first `count` episodes of what acts under that name. EnvironmentFailure."""
        made, config, spec = self._made.setdefault(name, []), self.agent.config, self.agent.spec
        envs = [make_task_env(config, spec) for _ in range(min(TOGETHER, count - len(made)))]
        try:
            while len(made) < count:
                numbers = range(len(made), min(len(made) + len(envs), count))
                seeds = [derive_seed(config.seed, "collected", name, number) for number in numbers]
                made += run_episodes(envs[: len(seeds)], policy, seeds, explore)
                self.say(f"{name}: {len(made)} of {count} episodes, mean return {_mean(made):.4g}")
        finally:
            for env in envs:
                env.close()
        return made[:count]


class Run:
    """What a trained run has of each kind."""

    def __init__(self, agent: TrainedAgent, references: int, say: Say) -> None:
        self.agent, self.references, self.say = agent, references, say
        self.run_dir, self._collected = agent.run_dir, Collected(agent, say)

    def episodes(self, kind: Kind, count: int | None) -> list[Episode]:
        """Return so many; None as `collect`. ConfigError if the run cannot show them."""
        if kind == "medium-replay":
            return _evenly(self._replayed(), count)
        count = count or EPISODES
        if kind == "medium-expert":
            return self._of("medium", -(-count // 2)) + self._of("expert", count // 2)
        return self._of(kind, count)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Mean returns of random actions and of the expert."""
        return {kind: _mean(self._of(kind, self.references)) for kind in ("random", "expert")}

    @cached_property
    def medium(self) -> Path:
        """Find the medium checkpoint. ConfigError if the run has not kept it."""
        lines = [line for line in read_metrics(self.run_dir.metrics_path) if line.get("kind") == "eval"]
        middle = 0.5 * (self.scores["random"] + self.scores["expert"])
        folders = CheckpointStore(self.run_dir.checkpoints_dir).folders()
        for i, folder in enumerate(folders):
            if _step(folder) == _step(folders[-1]):
                break  # the expert itself
            returns = [line["episode_return"] for line in lines if line["env_steps"] <= _step(folder)]
            if returns and returns[-1] is not None and returns[-1] > middle:
                if i == 0 and CheckpointStore.number(folder) > 1:
                    break  # one that is no longer kept may have been the first
                self.say(f"medium: {folder.name}, evaluated at {returns[-1]:.4g}; the middle is {middle:.4g}")
                return folder
        raise ConfigError(
            f"{self.run_dir.path}: its checkpoints ({len(folders)}) do not show when its return passed {middle:.4g}, "
            f"the middle between random and expert; want a run with training.keep_checkpoints=1000, and "
            f"training.checkpoint_every as small as training.eval_every"
        )

    def _of(self, kind: str, count: int) -> list[Episode]:
        if kind == "random":
            return self._collected.of(kind, RandomPolicy(self.agent.data), count)
        folder = self.medium if kind == "medium" else self.agent.loaded
        config, policy = self.agent.config, self.agent.policy
        policy.load(weights_in(load_checkpoint(folder, blobs=False), policy.networks))
        explore = exploration(config, self.agent.spec, _step(folder)) if kind == "medium" else 0.0
        return self._collected.of(kind, policy, count, explore)

    def _replayed(self) -> list[Episode]:
        """Read what the run had collected by the medium checkpoint, each shard's oldest first."""
        cursors = load_checkpoint(self.medium, blobs=False).meta.get("cursors", [])
        found = [
            decode(record)
            for shard, cursor in enumerate(cursors)
            for number, record in records_in(self.run_dir.path / "replay" / f"shard-{shard}")
            if number < cursor
        ]
        if not found:
            raise ConfigError(f"{self.run_dir.path}: its replay has no episode left from before {self.medium.name}")
        return found


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _mean(episodes: Sequence[Episode]) -> float:
    return float(np.mean([episode.episode_return for episode in episodes]))


def _evenly(episodes: list[Episode], count: int | None) -> list[Episode]:
    """Take `count` of them, spread over all; None: all."""
    chosen = np.linspace(0, len(episodes) - 1, min(count or len(episodes), len(episodes)))
    return [episodes[round(place)] for place in chosen]
