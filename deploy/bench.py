"""`make bench`: decision and update times as ratios to what this machine's matrix products reach, in one run.

Utilisation = floating-point operations the algorithm needs (deploy/operations.py) / (measured time x measured fp32 or
bf16 product rate of the same number of threads).

With `--run RUN`: what each planner economy saves and costs with a trained run's networks.
Without options the replay, the cluster and what measuring costs are measured too: deploy/bench_replay.py,
bench_cluster.py and bench_metrics.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.evaluation import evaluate
from common.batch import Batch
from common.config import ConfigError, load_config
from common.environments.make import make_env
from common.environments.task_env import TaskSpec
from common.run_dir import RunDir
from common.weights import Weights
from deploy.agent import choose_device, make_learner, make_policy
from deploy.operations import decision_flops, update_flops
from deploy.run_config import RunConfig, preset_path
from deploy.trained import TrainedAgent
from learner.arithmetic import cpu_threads, product_rate, timings
from planner_service.policy import MPCPolicy


@dataclass(frozen=True)
class Shape:
    """One of the measured problems."""

    name: str
    preset: str
    obs_dim: int
    action_dim: int
    batch_size: int
    decision_reference: float | None
    """seconds of the published implementation on a 2-core machine with fp32 products at about 185 GFLOP/s"""
    update_reference: float | None
    """likewise, batch 64"""


SHAPES = [
    Shape("laptop cartpole N=1", "laptop", 5, 1, 64, None, None),
    Shape("paper reacher N=2", "paper-dmc", 6, 2, 64, 2.77, 2.53),
    Shape("paper Meta-World N=4", "paper-metaworld", 39, 4, 64, 4.83, 5.38),
    Shape("paper walker N=6", "paper-dmc", 24, 6, 64, 7.70, 11.05),
]

EXACT: dict[str, Any] = {
    "sample_decay": 1.0,
    "early_stop": False,
    "noise_exponent": 0.0,
    "keep_elites": 0,
    "terminal_value": "greedy",
}
"""the algorithm without economies"""


def economies(elites: int) -> dict[str, dict[str, Any]]:
    """Planner settings on top of EXACT, by what the tables call them."""
    return {
        "exact": {},
        "sample_decay=1.5": {"sample_decay": 1.5},
        "early_stop": {"early_stop": True},
        "noise_exponent=2": {"noise_exponent": 2.0},
        "keep_elites": {"keep_elites": min(8, elites)},
        "terminal first_dimension": {"terminal_value": "first_dimension"},
    }


# --- time taken ----------------------------------------------------------------------------------------------------


def precisions(device: torch.device, threads: int) -> list[torch.dtype]:
    """bfloat16 only where it is faster: a CPU that emulates it has nothing to gain."""
    single, half = (product_rate(device, dtype, threads) for dtype in (torch.float32, torch.bfloat16))
    return [torch.float32, torch.bfloat16] if half > single else [torch.float32]


def random_batch(c: RunConfig, m: int, n: int, batch: int) -> Batch:
    """Windows of noise: speed does not depend on what is learned."""
    rng, length = np.random.default_rng(0), c.tdm.window

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return Batch(
        observations=normal(batch, length + 1, m),
        actions=normal(batch, length, n).clip(-1, 1),
        rewards=normal(batch, length),
        terminated=np.zeros((batch, length), np.bool_),
        mask=np.ones((batch, length), np.bool_),
        returns_to_go=normal(batch, length),
    )


def time_decision(c: RunConfig, spec: TaskSpec, device: torch.device, repeats: int, environments: int = 1) -> float:
    """Best seconds of one decision for all environments."""
    policy = make_policy(c, spec, device)
    if not isinstance(policy, MPCPolicy):
        raise ConfigError(f"agent={c.agent} does not plan; want qt-tdm or tdm")
    policy.begin(list(range(environments)), exploration=1.0)
    observations = np.zeros((environments, spec.obs_dim), np.float32)
    return min(timings(lambda: policy.act(observations), device, repeats))


def time_update(c: RunConfig, spec: TaskSpec, device: torch.device, repeats: int) -> float:
    """Best seconds of one update of both models."""
    learner = make_learner(c, spec, device)
    batch = random_batch(c, spec.obs_dim, spec.action_dim, c.learner.batch_size)
    return min(timings(lambda: learner.update(batch), device, repeats))


class TimedPolicy:
    """A policy that notes how long each decision took; actions come back on the CPU, so the device is done by then."""

    def __init__(self, policy: MPCPolicy) -> None:
        self.policy, self.weights_version, self.decided = policy, policy.weights_version, policy.decided
        self.seconds: list[float] = []

    def load(self, weights: Weights) -> None:
        self.policy.load(weights)

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.policy.begin(seeds, exploration)

    def act(self, observations: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        actions = self.policy.act(observations)
        self.seconds.append(time.perf_counter() - started)
        return actions


# --- tables --------------------------------------------------------------------------------------------------------


def shapes_named(part: str) -> list[Shape]:
    """Those whose name contains `part`. ConfigError if none does."""
    if found := [s for s in SHAPES if part in s.name]:
        return found
    raise ConfigError(f"--only {part}: no such shape; want a part of one of: {', '.join(s.name for s in SHAPES)}")


def shape_spec(shape: Shape) -> TaskSpec:
    """A task of that shape."""
    return TaskSpec(shape.obs_dim, shape.action_dim, 1, 1000, terminates=False, has_success=False)


def repeats_for(shape: Shape, device: torch.device) -> int:
    """How often to measure: small problems often."""
    return 30 if shape.preset == "laptop" or device.type == "cuda" else 3


def print_shape(shape: Shape, device: torch.device, threads: int | None, overrides: list[str]) -> None:
    """Two rows for each precision: a decision and an update. threads: of the preset, or else torch's, if None."""
    settings = [f"learner.batch_size={shape.batch_size}", *overrides]
    threads = threads or load_config(RunConfig, preset_path(shape.preset), overrides=settings).threads
    threads = threads or torch.get_num_threads()
    m, n, spec, repeats = shape.obs_dim, shape.action_dim, shape_spec(shape), repeats_for(shape, device)
    for dtype in precisions(device, threads):
        precision = str(dtype).removeprefix("torch.")
        c = load_config(RunConfig, preset_path(shape.preset), overrides=[f"precision={precision}", *settings])
        with cpu_threads(threads):
            # Before and after: a machine shared with others does not always have the same speed to give.
            before = product_rate(device, dtype, threads)
            decision, update = time_decision(c, spec, device, repeats), time_update(c, spec, device, repeats)
            rate = max(before, product_rate(device, dtype, threads))
        for what, seconds, flops, reference in [
            ("decision", decision, decision_flops(c, m, n), shape.decision_reference),
            ("update", update, update_flops(c, m, n, c.learner.batch_size), shape.update_reference),
        ]:
            published = f"{1e3 * reference:.0f}" if reference else "-"
            print(
                f"{shape.name:24}{precision:>10}{threads:8}{rate / 1e9:10.0f}{flops / 1e9:8.2f}{1e3 * seconds:10.1f}"
                f"{flops / seconds / rate:10.0%}{published:>11}  {what}"
            )


def print_economies(shape: Shape, device: torch.device, threads: int | None, overrides: list[str]) -> None:
    """Decision times with untrained networks: no learned behaviour to lose, so only times."""
    print(f"\nplanner economies, {shape.name}, decision time against the exact algorithm's in this run")
    base = load_config(RunConfig, preset_path(shape.preset), overrides=overrides)
    spec, repeats = shape_spec(shape), repeats_for(shape, device)

    def seconds(changes: dict[str, Any]) -> float:
        planner = base.planner.model_copy(update=EXACT | changes)
        return time_decision(base.model_copy(update={"planner": planner}), spec, device, repeats)

    with cpu_threads(threads or base.threads or torch.get_num_threads()):
        exact = seconds({})
        for label, changes in economies(base.planner.elites).items():
            if label not in ("exact", "early_stop"):
                print(f"{label:26}{seconds(changes) / exact:6.2f}")
    print("early_stop: not here, an untrained planner's std never comes down to its floor; see --run")


def print_run_economies(path: Path, episodes: int, overrides: list[str]) -> None:
    """A trained run: each economy's median decision time over one episode, against exact, and its mean return."""
    run_dir = RunDir.open(path)
    config = load_config(RunConfig, run_dir.config_path, overrides=overrides)
    if config.agent == "qt":
        raise ConfigError(f"{path}: agent=qt does not plan, so it has no planner to economise on")
    print(f"{'economy':26}{'time':>6}{'return':>9}   ({config.task}, {episodes} episodes; time 1 is the exact planner)")
    envs = [make_env(config.task, config.env) for _ in range(episodes)]
    exact = 0.0
    for label, changes in economies(config.planner.elites).items():
        planner = [f"planner.{key}={value}" for key, value in (EXACT | changes).items()]
        with cpu_threads(torch.get_num_threads()):  # a run sets its own number
            policy = TrainedAgent(path, [*overrides, *planner]).policy
            assert isinstance(policy, MPCPolicy)
            timed = TimedPolicy(policy)
            evaluate(envs[:1], timed, config.seed)
            seconds = float(np.median(timed.seconds))
            exact = exact or seconds
            value = evaluate(envs, timed, config.seed).mean_return
            print(f"{label:26}{seconds / exact:6.2f}{value:9.1f}", flush=True)


def measure(options: argparse.Namespace) -> None:
    """What the options ask for. ConfigError if they cannot be."""
    for name in ("threads", "episodes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: want at least 1")
    device = choose_device(options.device)
    if options.run:
        if options.only:
            raise ConfigError("--run measures that run alone; it cannot take --only")
        own = {"device": None if options.device == "auto" else options.device, "threads": options.threads}
        given = [f"{key}={value}" for key, value in own.items() if value is not None]
        print_run_economies(options.run, options.episodes, [*given, *options.set])
        return
    shapes = shapes_named(options.only)
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else device)
    print(
        f"{'':24}{'precision':>10}{'threads':>8}{'GFLOP/s':>10}{'GFLOP':>8}{'ms':>10}{'utilised':>10}{'published':>11}"
    )
    for shape in shapes:
        print_shape(shape, device, options.threads, options.set)
    print_economies(shapes[0], device, options.threads, options.set)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the preset's or run's, else torch's)")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every shape, or the run")
    parser.add_argument("--run", type=Path, help="measure the planner economies with this run's networks instead")
    parser.add_argument("--episodes", type=int, default=10, help="with --run: episodes for each return (10)")
    options = parser.parse_args(arguments)
    try:
        measure(options)
    except ConfigError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not options.only and not options.run:
        from deploy.bench_cluster import print_cluster  # not at the top: Ray takes a second to import
        from deploy.bench_metrics import print_metrics
        from deploy.bench_replay import print_replay

        print_replay()
        print_cluster()
        print_metrics()
    return 0


if __name__ == "__main__":
    sys.exit(main())
