"""`make bench`, its cluster part: how soon new weights are in place, and what several processes gain over one.

Starts a Ray of its own on this machine. Everything is a ratio within this run; nothing is asserted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

from qttdm.common.config import load_config
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.weights import Weights
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.build import make_policy, task_spec
from qttdm.learner.remote import Broadcast

RECEIVERS = (1, 4, 16)
PUBLISHES = 30
INTERVAL = 0.5
"""seconds from one publish to the next: 50 updates of 10 ms. (Ray takes up to a second to give an object's memory free.
At once one after the other, each would get memory that nobody has touched, and take four times as long to write.)"""
ACTORS = (1, 2, 4)
ENV_STEPS = 6_000  # of cartpole-swingup at action repeat 2
COMMON = ["--preset", "laptop", "--env-steps", str(ENV_STEPS), "--set", f"training.eval_every={10 * ENV_STEPS}"]
COMMON += ["--set", "training.log_every=50", "--set", "training.eval_episodes=1"]


def paper_networks() -> nn.Module:
    """Make TDM and QT of walker-walk at the paper's size."""
    config = load_config(RunConfig, preset_path("paper-dmc"), task="dmc/walker-walk")
    return make_policy(config, task_spec(config), torch.device("cpu")).networks


class Receiver:
    """A collector as far as weights go: takes them, and writes them into its networks before it would act."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.networks = paper_networks().requires_grad_(False)

    @ray.method(concurrency_group="control")
    def take(self, values: np.ndarray, version: int, checksum: int) -> float:
        """Put weights in place; returns when they were (time.time())."""
        Weights(values, version, checksum).copy_into(self.networks)
        return time.time()


def print_weights() -> None:
    """Time weights from the learner's `publish` to the last of N actors having them in its networks."""
    networks = paper_networks()
    parameters = sum(p.numel() for p in networks.parameters())
    print(f"\nweights, {parameters / 1e6:.1f}M parameters: from publish to the last actor having them in place")
    print(f"{'actors':>8}{'p50 ms':>10}{'p95 ms':>10}{'learner ms':>12}")
    for count in RECEIVERS:
        names = [f"bench/receiver-{count}-{i}" for i in range(count)]
        options: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {"control": 1}}
        receivers: list[Any] = [ray.remote(**options)(Receiver).options(name=name).remote() for name in names]
        ray.get([actor.__ray_ready__.remote() for actor in receivers])
        broadcast = Broadcast(names)
        delays, costs = [], []
        for version in range(1, PUBLISHES + 1):
            time.sleep(INTERVAL)
            started = time.time()
            broadcast.send(Weights.of(networks, version))
            costs.append(time.time() - started)
            delays.append(max(ray.get(list(broadcast.answers.values()))) - started)
        delays, costs = delays[5:], costs[5:]  # the first ones find nothing warm
        p50, p95 = np.percentile(delays, 50) * 1e3, np.percentile(delays, 95) * 1e3
        print(f"{count:8d}{p50:10.1f}{p95:10.1f}{np.median(costs) * 1e3:12.1f}", flush=True)
        for actor in receivers:
            ray.kill(actor)


def print_system() -> None:
    """Print the laptop preset's speed once learning has begun: of one process, and of clusters."""
    print(f"\nwhole system, laptop preset, {os.cpu_count()} cores: environment steps per second while learning")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        before = measure_speed(["train", "--run-dir", str(runs / "before")], runs / "before")
        clusters = []
        for actors in ACTORS:
            spread = ["--actors", str(actors), "--set", f"cluster.actor_cpus={1 / actors}"]  # they share one core
            words = ["cluster", "train", *spread, "--seeds", "0", "--name", str(actors), "--runs-dir", folder]
            clusters.append((actors, measure_speed(words, runs / str(actors) / "seed-0")))
        # once more: the machine's own speed may have changed
        after = measure_speed(["train", "--run-dir", str(runs / "after")], runs / "after")
    one = (before + after) / 2
    print(f"one process       {one:10.1f}  ({before:.1f} before the others, {after:.1f} after)")
    for actors, steps in clusters:
        print(f"cluster, actors: {actors}{steps:10.1f}{steps / one:8.2f}")


def measure_speed(words: list[str], run_dir: Path) -> float:
    """Train in a process of its own; returns environment steps per second, learned from as they were collected.

    From the first update until all environment steps are there: what comes after, when the learner makes the updates
    that are left, would be a tenth of so short a run.
    """
    command = [sys.executable, "-m", "qttdm.deploy.cli.main", *words, *COMMON]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"qttdm {' '.join(words)}: {done.stderr}")
    updates = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == "update"]
    first, last = updates[0], next(line for line in updates if line["env_steps"] == updates[-1]["env_steps"])
    # there is one update for each decision
    steps = (last["updates"] - first["updates"]) * last["env_steps"] / last["decisions"]
    return float(steps / (last["wall_seconds"] - first["wall_seconds"]))


def print_cluster() -> None:
    """Print both tables, of a Ray of its own."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a local Ray turns it on and leaves a token in the home directory
    context: Any = ray.init(
        address="local", num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False
    )
    os.environ["RAY_ADDRESS"] = context.address_info["address"]  # for the processes started here
    try:
        print_weights()
        print_system()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    print_cluster()
