"""Run all seeds of a run on a Ray cluster: queue them, look after them side by side, go on with them later.

ClusterRun --> SeedRun (deploy/cluster/seed_run.py), one for each seed
           --> RunControl, an actor <-- qttdm cluster status, stop
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from qttdm.common.config import ConfigError, dump_config
from qttdm.common.disk import write_file
from qttdm.common.metrics.watchdog import stacks
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cluster.seed_run import ENDED, SeedRun
from qttdm.deploy.configs.cluster_config import NAMESPACE
from qttdm.deploy.configs.run_config import RunConfig, load_saved_config, with_env_steps
from qttdm.deploy.runs.build import task_spec
from qttdm.deploy.runs.machine import machine
from qttdm.deploy.runs.saved_task import save_task
from qttdm.deploy.runs.trained import newest_checkpoint
from qttdm.deploy.screens.rows import Row, View, time_left


class RunControl:
    """A run as other processes reach it: its table for `qttdm cluster status`, and the request to stop it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._stop_requested = False

    def publish(self, view: View) -> bool:
        """Take the newest table; returns whether someone asked to stop."""
        self._view = view
        return self._stop_requested

    def view(self) -> View:
        """Return the newest table."""
        return self._view

    def request_stop(self) -> None:
        """Ask the driver to stop: it hears of it when it next publishes."""
        self._stop_requested = True


class ClusterRun:
    """All seeds of a run, in `<directory>/seed-<s>`."""

    def __init__(self, directory: Path, seeds: Sequence[SeedRun]) -> None:
        self.directory, self.name, self.seeds = directory, directory.name, seeds

    def run(self, show: Any, should_stop: Any) -> None:
        """Run until every seed has ended. show(view) is called once a second; should_stop() ten times as often."""
        control: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RunControl)
        control = control.options(name=f"{self.name}/control", namespace=NAMESPACE).remote(self.view())
        asked: ray.ObjectRef | None = None
        stopping = False
        shown = 0.0
        try:
            for seed in self.seeds:
                if seed.state not in ENDED:
                    seed.reserve()
            while any(seed.state not in ENDED for seed in self.seeds):
                if asked is not None and ray.wait([asked], timeout=0)[0]:
                    stopping = stopping or ray.get(asked)
                    asked = None
                for seed in self.seeds:
                    if stopping or should_stop():
                        seed.stop()
                    seed.poll()
                if time.monotonic() - shown >= 1.0:
                    shown = time.monotonic()
                    show(self.view())
                    if asked is None:
                        asked = control.publish.remote(self.view())
                time.sleep(0.1)
            show(self.view())
        finally:  # also when this loop fails: nothing of ours stays in the cluster
            for seed in self.seeds:
                if seed.state not in ENDED:
                    seed.fail(RuntimeError("the driver failed"))
            ray.kill(control)

    def view(self) -> View:
        """Describe how the run goes: a row for each seed."""
        title = f"{self.name}: {self.seeds[0].config.task}, {self.directory}"
        return View(title, [seed_row(seed) for seed in self.seeds])


def seed_row(seed: SeedRun) -> Row:
    """Make a seed's row, from what its learner said last."""
    said, target = seed.status, seed.config.training.env_steps
    hung = sum(seed.restarts.values()) + count_hung(seed.run_dir)
    spent = said.get("spent", {})
    waited = spent.get("waiting_for_decisions", 0.0) + spent.get("waiting_for_batches", 0.0)
    return Row(
        seed=seed.config.seed,
        state=seed.state,
        steps=said.get("env_steps", 0),
        target=target,
        seconds_left=time_left(said.get("env_steps"), target, said.get("wall_seconds")),
        episode_return=said.get("episode_return"),
        eval_return=said.get("eval_return"),
        updates_per_second=said.get("updates_per_second"),
        decisions_per_second=said.get("decisions_per_second"),
        idle=waited / max(1e-9, said["seconds"]) if spent else None,
        fill=said.get("replay_fill"),
        staleness=said.get("staleness"),
        restarts=said.get("actor_restarts", 0) + said.get("environment_failures", 0) + hung,
    )


def count_hung(run_dir: RunDir) -> int:
    """Count the processes that ended themselves because they hung, but for actors: the learner counts those."""
    return sum(not path.name.startswith("actor-") for path in stacks(run_dir.path))


def new_seeds(directory: Path, configs: Sequence[RunConfig]) -> list[SeedRun]:
    """Make the directories of a run's seeds, each with its resolved configuration. ConfigError if one cannot be."""
    seeds = []
    for config in configs:
        run_dir = RunDir.create(directory / f"seed-{config.seed}")
        write_file(run_dir.config_path, dump_config(config).encode())
        write_file(run_dir.machine_path, json.dumps(machine()).encode())
        spec = task_spec(config)
        save_task(run_dir, config, spec)
        seeds.append(SeedRun(directory.name, config, run_dir, spec))
    return seeds


def old_seeds(directory: Path, env_steps: int | None = None) -> list[SeedRun]:
    """Open the seeds of a run that has been started before, one seed of `qttdm train`; those done are "finished".

    env_steps: to train each until; ConfigError if one has had so many already.
    """
    paths = list(directory.glob("seed-*/config.yaml")) or list(directory.glob("config.yaml"))
    if not paths:
        raise ConfigError(
            f"{directory}: not a run of `qttdm cluster train` or `train` (no config.yaml in it or in seed-*)"
        )
    return sorted((old_seed(directory.name, path, env_steps) for path in paths), key=lambda seed: seed.config.seed)


def old_seed(name: str, path: Path, env_steps: int | None = None) -> SeedRun:
    """Open one seed by its config.yaml. ConfigError if its replay is spread over another number of shards."""
    config, run_dir = load_saved_config(path), RunDir.open(path.parent)
    shards, done, ended = config.cluster.shards, 0, False
    had = max(shards, len(list(run_dir.path.glob("replay/shard-*"))))  # at a first start some may not have been made
    if any(run_dir.checkpoints_dir.glob("[0-9]*-step-*")):
        meta = newest_checkpoint(run_dir, blobs=False).meta
        had = len(meta["cursors"])
        done, ended = meta["counters"]["env_steps"], meta["finished"]
    if had != shards:
        raise ConfigError(
            f"{path}: got cluster.shards={shards}, but its replay is spread over {had}; the number cannot change"
        )
    if env_steps is not None:
        config = with_env_steps(config, env_steps, done, run_dir)
    seed = SeedRun(name, config, run_dir, task_spec(config))
    seed.state = "finished" if ended and done >= config.training.env_steps else "queued"
    return seed
