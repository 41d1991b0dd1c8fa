"""`make bench`: decision and update times as ratios to what this machine's matrix products reach, in one run.

Utilisation = floating-point operations the algorithm needs / (measured time x measured fp32 or bf16 product rate of
the same number of threads). Operations counted are multiply-adds (2 each) of matrix products only; a linear layer with
W weights needs 2 W per token forward, and 4 W more backward. The formulas are `decision_flops` and `update_flops`.

With `--run RUN`: what each planner economy saves and costs with a trained run's networks.
Without options the replay and the cluster are measured too (deploy/bench_replay.py, deploy/bench_cluster.py).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from deploy.run_config import RunConfig, preset_path
from deploy.trained import TrainedAgent
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


# --- operations needed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Macs:
    """Multiply-adds: of linear layers, and of attention's scores and weighted sums."""

    linear: int = 0
    attention: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __rmul__(self, factor: int) -> Macs:
        return Macs(factor * self.linear, factor * self.attention)

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return 2.0 * (self.linear + self.attention)


def trunk_macs(dim: int, layers: int, tokens: int, read: int, pairs: int, read_pairs: int) -> Macs:
    """One sequence: in all blocks but the last every token; there, keys and values of all, the rest of what is read.

    A block has 12 D^2 weights, 2 D^2 of them for keys and values. pairs, read_pairs: query-key pairs in a block of the
    first kind and in the last.
    """
    linear = (layers - 1) * tokens * 12 * dim**2 + tokens * 2 * dim**2 + read * 10 * dim**2
    return Macs(linear, 2 * dim * ((layers - 1) * pairs + read_pairs))


def head_macs(inputs: int, hidden: int, layers: int, outputs: int) -> Macs:
    """A prediction head for one row."""
    return Macs(inputs * hidden + (layers - 1) * hidden * hidden + hidden * outputs)


def tdm_heads_macs(c: RunConfig, m: int) -> Macs:
    """The TDM's state and reward heads for one step."""
    t = c.tdm
    return head_macs(t.embed_dim, t.head_dim, t.head_layers, m) + head_macs(t.embed_dim, t.head_dim, t.head_layers, 1)


def qt_macs(c: RunConfig, m: int, tokens: int, attends: bool) -> Macs:
    """The QT reading a state and tokens-1 actions, Q-values at each; attends=False: a token alone is its own value."""
    d, layers = c.qt.embed_dim, c.qt.num_layers
    weights = layers * (12 if attends else 10) * d**2 + 2 * (d * d + d * c.qt.bins)
    pairs = tokens * (tokens + 1) // 2 if attends else 0
    return Macs(m * d + tokens * weights, 2 * d * layers * pairs)


def decision_macs(c: RunConfig, m: int, n: int, environments: int = 1) -> Macs:
    """Algorithm 2 for E environments: sampled sequences in every iteration, proposed and kept ones once."""
    p, t = c.planner, c.tdm
    root = Macs(m * t.embed_dim) + trunk_macs(t.embed_dim, t.num_layers, 1, 1, 1, 1)
    sequence = Macs()
    for h in range(p.horizon):
        # The first step adds N action tokens to the root's state token, a later one N+1 to the h (N+1) before it.
        seen, tokens = (h * (n + 1), n + 1) if h else (1, n)
        pairs = tokens * seen + tokens * (tokens + 1) // 2
        sequence += trunk_macs(t.embed_dim, t.num_layers, tokens, 1, pairs, seen + tokens)
        sequence += tdm_heads_macs(c, m) + Macs(m * t.embed_dim if h else 0)
    choose = qt_macs(c, m, n, attends=n > 1)
    value = choose if p.terminal_value == "greedy" else qt_macs(c, m, 1, attends=False)
    sampled = sum(p.samples_at(i) for i in range(p.iterations)) + p.keep_elites
    if c.agent == "tdm":
        each = sampled * sequence
    else:
        each = sampled * (sequence + value) + p.qt_samples * (sequence + p.horizon * choose + value)
    return environments * (root + each)


def update_macs(c: RunConfig, m: int, n: int, batch: int) -> Macs:
    """Eq. 8 forward and backward on B windows, Eq. 9 forward and backward on B * S states, two target passes."""
    t, length = c.tdm, c.tdm.window
    tokens = length * (n + 1)
    read_pairs = (n + 1) * length * (length + 1) // 2
    tdm = trunk_macs(t.embed_dim, t.num_layers, tokens, length, tokens * (tokens + 1) // 2, read_pairs)
    # Backward costs twice the forward pass; but nobody asks for the gradient with respect to the observations.
    tdm = 3 * (tdm + length * tdm_heads_macs(c, m)) + 2 * Macs(length * m * t.embed_dim)
    online = qt_macs(c, m, n, attends=n > 1 or c.qt.dropout > 0)
    qt = 3 * online + Macs(-m * c.qt.embed_dim) + qt_macs(c, m, 1, attends=False)
    if n > 1:  # targets of all dimensions but the last, from the later dimensions of the same step
        qt += qt_macs(c, m, n, attends=True)
    per_window = tdm if c.agent != "qt" else Macs()
    if c.agent != "tdm":
        per_window += c.learner.qt.states_per_window * qt
    return batch * per_window


def decision_flops(c: RunConfig, m: int, n: int, environments: int = 1) -> float:
    """Floating-point operations of one decision."""
    return decision_macs(c, m, n, environments).flops


def update_flops(c: RunConfig, m: int, n: int, batch: int) -> float:
    """Floating-point operations of one update."""
    return update_macs(c, m, n, batch).flops


# --- time taken ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """torch on that many CPU threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Floating-point operations per second of a large matrix product, best of several."""
    size = 8192 if device.type != "cpu" else 1536 if dtype == torch.float32 else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with cpu_threads(threads):
        return 2 * size**3 / min(timings(lambda: a @ b, device, repeats=10))


def precisions(device: torch.device, threads: int) -> list[torch.dtype]:
    """bfloat16 only where it is faster: a CPU that emulates it has nothing to gain."""
    single, half = (product_rate(device, dtype, threads) for dtype in (torch.float32, torch.bfloat16))
    return [torch.float32, torch.bfloat16] if half > single else [torch.float32]


def timings(action: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted."""
    action()
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


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
        from deploy.bench_replay import print_replay

        print_replay()
        print_cluster()
    return 0


if __name__ == "__main__":
    sys.exit(main())
