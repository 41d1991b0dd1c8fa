"""`make bench`, its cluster part: how soon new weights are acted on, and what several processes gain over one.

Starts a Ray of its own on this machine. Everything is a ratio within this run; nothing is asserted.
"""

from __future__ import annotations

import json
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

from qttdm.actors.episodes import run_episodes
from qttdm.common.config import load_config
from qttdm.common.environments.make import make_env
from qttdm.common.weights import Weights
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.build import make_policy, task_spec
from qttdm.learner.permits import Permit
from qttdm.learner.remote import Broadcast
from qttdm.planner_service.policies.random_actions import RandomPolicy
from qttdm.replay.buffer import Replay
from qttdm.replay.codec import encode

RECEIVERS = (1, 4, 16)
PUBLISHES = 30
INTERVAL = 0.5
"""seconds from one publish to the next: 50 updates of 10 ms. (Ray takes up to a second to give an object's memory free.
At once one after the other, each would get memory that nobody has touched, and take four times as long to write.)"""
CALLS = 1000
ACTORS = (1, 2, 4)
ENV_STEPS = 20_000  # of cartpole-swingup at action repeat 8
COMMON = ["--preset", "laptop", "--env-steps", str(ENV_STEPS), "--set", f"training.eval_every={10 * ENV_STEPS}"]
COMMON += ["--set", "training.log_every=50", "--set", "training.eval_episodes=1"]


def paper_networks() -> nn.Module:
    """TDM and QT of walker-walk at the paper's size."""
    config = load_config(RunConfig, preset_path("paper-dmc"), task="dmc/walker-walk")
    return make_policy(config, task_spec(config), torch.device("cpu")).networks


class Receiver:
    """A collector as far as weights go: takes them, and writes them into its networks before it would act."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.networks = paper_networks().requires_grad_(False)

    @ray.method(concurrency_group="control")
    def take(self, values: np.ndarray, version: int, checksum: int) -> float:
        """Returns when (time.time()) the weights were in place."""
        Weights(values, version, checksum).copy_into(self.networks)
        return time.time()

    def answer(self) -> Permit:
        """As a learner answers an actor that would like to collect."""
        return Permit("collect")


def receiver(name: str) -> Any:
    """A Receiver as an actor."""
    options: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {"control": 1}}
    return ray.remote(**options)(Receiver).options(name=name).remote()


def weights() -> None:
    """From the learner's `publish` to the last of N actors having the weights in its networks."""
    networks = paper_networks()
    parameters = sum(p.numel() for p in networks.parameters())
    print(f"\nweights, {parameters / 1e6:.1f}M parameters: from publish to the last actor having them in place")
    print(f"{'actors':>8}{'p50 ms':>10}{'p95 ms':>10}{'learner ms':>12}")
    for count in RECEIVERS:
        names = [f"bench/receiver-{count}-{i}" for i in range(count)]
        receivers = [receiver(name) for name in names]
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


def parts() -> None:
    """What the scaling model (docs/scaling.md) needs beside the other tables: of walker-walk at the paper's size."""
    config = load_config(RunConfig, preset_path("paper-dmc"), task="dmc/walker-walk")
    env = make_env(config.task, config.env)
    agent = config.make_agent(env.task_spec)
    started = time.perf_counter()
    [episode] = run_episodes([env], RandomPolicy(agent.data), [0], exploration=1.0)
    simulating = (time.perf_counter() - started) / episode.decisions
    replay = Replay(config.replay, agent.data, seed=0)
    replay.add(episode)
    batch = replay.sample(agent.batch_size)
    snapshot = Weights.of(paper_networks(), 0)

    other = receiver("bench/receiver")
    ray.get(other.answer.remote())
    started = time.perf_counter()
    for _ in range(CALLS):
        ray.get(other.answer.remote())
    alone = (time.perf_counter() - started) / CALLS
    started = time.perf_counter()
    ray.get([other.answer.remote() for _ in range(CALLS)])
    together = (time.perf_counter() - started) / CALLS
    ray.kill(other)

    print("\nwalker-walk at the paper's size")
    print(f"simulating one decision {1e3 * simulating:15.2f} ms")
    print(f"a call and its answer   {1e3 * alone:15.2f} ms, {1 / together:,.0f} answered per second at most")
    print(f"weights                 {snapshot.values.nbytes:15,} bytes")
    print(f"an episode, stored      {len(encode(episode)):15,} bytes, {episode.decisions} decisions")
    print(f"a batch                 {sum(part.nbytes for part in batch.values()):15,} bytes")


def system() -> None:
    """The laptop preset's speed once learning has begun: one process, a cluster, and one process again."""
    print(f"\nwhole system, laptop preset, {os.cpu_count()} cores: environment steps per second while learning")
    print(f"{'':24}{'steps/s':>10}{'ratio':>8}{'learner waits for: decisions':>30}{'batches':>9}")
    with tempfile.TemporaryDirectory() as folder:
        speeds = [alone(Path(folder) / "before")]
        rows = [(actors, spread(Path(folder), actors)) for actors in ACTORS]
        speeds.append(alone(Path(folder) / "after"))  # the machine may have another speed by now
    drift = f"({speeds[0]:.1f} before the others, {speeds[1]:.1f} after)"
    print(f"{'one process':24}{np.mean(speeds):10.1f}{1:8.2f}   {drift}")
    for actors, lines in rows:
        speed = steps_per_second(lines)
        waits = [share(lines, f"share_waiting_for_{what}") for what in ("decisions", "batches")]
        name = f"cluster, {actors} actor{'s' if actors > 1 else ''}"
        print(f"{name:24}{speed:10.1f}{speed / np.mean(speeds):8.2f}{waits[0]:30.0%}{waits[1]:9.0%}")


def alone(run_dir: Path) -> float:
    """Environment steps per second of one process."""
    run(["train", *COMMON, "--run-dir", str(run_dir)])
    return steps_per_second(while_collecting(run_dir))


def spread(runs: Path, actors: int) -> list[dict[str, Any]]:
    """The lines `while_collecting` of a cluster's run with that many actors, which share one core's worth of CPUs."""
    name = f"actors-{actors}"
    cluster = ["--actors", str(actors), "--set", f"cluster.actor_cpus={1 / actors}"]
    run(["cluster", "train", *COMMON, *cluster, "--seeds", "0", "--name", name, "--runs-dir", str(runs)])
    return while_collecting(runs / name / "seed-0")


def run(words: list[str]) -> None:
    """A qttdm command in a process of its own, silent unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "qttdm.deploy.cli.main", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"qttdm {' '.join(words)}: {done.stderr}")


def while_collecting(run_dir: Path) -> list[dict[str, Any]]:
    """The `update` lines from the first one until all environment steps of the run are there.

    What comes after, when the learner makes the updates that are left, would be a tenth of so short a run.
    """
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "update"]
    collected = next(i for i, line in enumerate(updates) if line["env_steps"] == updates[-1]["env_steps"])
    return updates[: collected + 1]


def steps_per_second(lines: list[dict[str, Any]]) -> float:
    """Environment steps that were learned from: there is one update for each decision."""
    first, final = lines[0], lines[-1]
    steps = (final["updates"] - first["updates"]) * final["env_steps"] / final["decisions"]
    return steps / (final["wall_seconds"] - first["wall_seconds"])


def share(lines: list[dict[str, Any]], name: str) -> float:
    """Mean over time of a share that each line tells of the time since the one before."""
    seconds = np.diff([line["wall_seconds"] for line in lines])
    return float(np.average([line[name] for line in lines[1:]], weights=seconds))


def print_cluster() -> None:
    """All of it, on a Ray of its own."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a local Ray turns it on and leaves a token in the home directory
    context: Any = ray.init(
        address="local", num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False
    )
    os.environ["RAY_ADDRESS"] = context.address_info["address"]  # for the processes started here
    try:
        weights()
        parts()
        system()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    print_cluster()
