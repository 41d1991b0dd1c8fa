"""All seeds of a run on a Ray cluster: queued, run side by side, told of on the run's notice board, gone on with.

ClusterRun --> SeedRun (deploy/cluster/seed_run.py), one for each seed
           --> Board <-- qttdm cluster status, stop
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from qttdm.common.config import ConfigError, dump_config, load_config
from qttdm.common.metrics.watchdog import stacks
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cluster.seed_run import ENDED, SeedRun
from qttdm.deploy.configs.cluster_config import NAMESPACE
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.runs.build import task_spec
from qttdm.deploy.runs.trained import newest_checkpoint


class Board:
    """A run's notice board, an actor of its own: how it goes, for `qttdm cluster status`, and whether to stop."""

    def __init__(self, notice: dict[str, Any]) -> None:
        self.notice = notice
        self.stop_asked = False

    def put(self, notice: dict[str, Any]) -> bool:
        """The newest notice, plain data; returns whether someone asked to stop."""
        self.notice = notice
        return self.stop_asked

    def read(self) -> dict[str, Any]:
        """The newest notice."""
        return self.notice

    def ask_stop(self) -> None:
        """Tell whoever puts up notices."""
        self.stop_asked = True


class ClusterRun:
    """All seeds of a run, in `<directory>/seed-<s>`."""

    def __init__(self, directory: Path, seeds: Sequence[SeedRun]) -> None:
        self.directory, self.name, self.seeds = directory, directory.name, seeds

    def run(self, show: Any, should_stop: Any) -> None:
        """Until every seed has ended. show(notice) is called about once a second; should_stop() is asked as often."""
        board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
        self._board: Any = board.options(name=f"{self.name}/board", namespace=NAMESPACE).remote(self.notice())
        try:
            self._run(show, should_stop)
        finally:  # also when this loop fails: nothing of ours stays in the cluster
            for seed in self.seeds:
                if seed.state not in ENDED:
                    seed.fail(RuntimeError("the driver failed"))
            ray.kill(self._board)

    def _run(self, show: Any, should_stop: Any) -> None:
        for seed in self.seeds:
            if seed.state not in ENDED:
                seed.reserve()
        asked: ray.ObjectRef | None = None
        stopping = False
        shown = 0.0
        while any(seed.state not in ENDED for seed in self.seeds):
            if asked is not None and ray.wait([asked], timeout=0)[0]:
                stopping = stopping or ray.get(asked)
                asked = None
            if stopping or should_stop():
                for seed in self.seeds:
                    seed.stop()
            for seed in self.seeds:
                if seed.state == "queued" and seed.has_place():
                    self._start(seed)
                seed.poll()
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                show(self.notice())
                if asked is None:
                    asked = self._board.put.remote(self.notice())
            time.sleep(0.1)
        show(self.notice())

    def _start(self, seed: SeedRun) -> None:
        try:
            seed.start()
        except Exception as error:
            seed.fail(error)

    def notice(self) -> dict[str, Any]:
        """How it goes: plain data."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "task": self.seeds[0].config.task,
            "env_steps": self.seeds[0].config.training.env_steps,
            "seeds": [
                {
                    "seed": seed.config.seed,
                    "state": seed.state,
                    "error": seed.error,
                    "hung": sum(seed.restarts.values()) + hung(seed.run_dir),
                    **seed.status,
                }
                for seed in self.seeds
            ],
        }


def hung(run_dir: RunDir) -> int:
    """Processes that ended themselves because they hung. Actors tell the learner, which counts those."""
    return sum(not path.name.startswith("actor-") for path in stacks(run_dir.path))


def new_seeds(directory: Path, configs: Sequence[RunConfig]) -> list[SeedRun]:
    """Make the directories of a run's seeds, each with its resolved configuration. ConfigError if one cannot be."""
    seeds = []
    for config in configs:
        run_dir = RunDir.create(directory / f"seed-{config.seed}")
        run_dir.config_path.write_text(dump_config(config))
        seeds.append(SeedRun(directory.name, config, run_dir, task_spec(config)))
    return seeds


def old_seeds(directory: Path) -> list[SeedRun]:
    """The seeds of a run that has been started before, one seed of `qttdm train`; those done are "finished"."""
    paths = list(directory.glob("seed-*/config.yaml")) or list(directory.glob("config.yaml"))
    if not paths:
        raise ConfigError(
            f"{directory}: not a run of `qttdm cluster train` or `train` (no config.yaml in it or in seed-*)"
        )
    return sorted((old_seed(directory.name, path) for path in paths), key=lambda seed: seed.config.seed)


def old_seed(name: str, path: Path) -> SeedRun:
    """One of them, by its config.yaml. ConfigError if its replay is spread over another number of shards."""
    config, run_dir = load_config(RunConfig, path), RunDir.open(path.parent)
    seed = SeedRun(name, config, run_dir, task_spec(config))
    shards = config.cluster.shards
    had = max(shards, len(list(run_dir.path.glob("replay/shard-*"))))  # at a first start some may not have been made
    if any(run_dir.checkpoints_dir.glob("[0-9]*-step-*")):
        meta = newest_checkpoint(run_dir, blobs=False).meta
        had = len(meta["cursors"])
        seed.state = "finished" if meta["finished"] else "queued"
    if had != shards:
        raise ConfigError(
            f"{path}: got cluster.shards={shards}, but its replay is spread over {had}; the number cannot change"
        )
    return seed
