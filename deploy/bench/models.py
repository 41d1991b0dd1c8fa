"""`make bench`: decision and update times as ratios to what this machine's matrix products reach, in one run.

Utilisation = floating-point operations that torch counts / (measured time x measured fp32 or bf16 product rate of the
same number of threads). Without options the planner service, the replay and the cluster are measured too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from qttdm.common.config import ConfigError, load_config
from qttdm.common.contracts import TaskSpec
from qttdm.deploy.bench.timing import cpu_threads, product_rate, timings
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.build import choose_device, make_learner, make_policy
from qttdm.deploy.runs.dry_run import random_batch
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.policies.planning import blank_observations


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

    @property
    def spec(self) -> TaskSpec:
        """Make a task of that shape."""
        return TaskSpec(self.obs_dim, self.action_dim, 1, 1000, terminates=False)


SHAPES = [
    Shape("laptop cartpole N=1", "laptop", 5, 1, 64, None, None),
    Shape("paper reacher N=2", "paper-dmc", 6, 2, 64, 2.77, 2.53),
    Shape("paper Meta-World N=4", "paper-metaworld", 39, 4, 64, 4.83, 5.38),
    Shape("paper walker N=6", "paper-dmc", 24, 6, 64, 7.70, 11.05),
]


def precisions(device: torch.device, threads: int) -> list[torch.dtype]:
    """Choose bfloat16 too where it is faster: a CPU that emulates it has nothing to gain."""
    single, half = (product_rate(device, dtype, threads) for dtype in (torch.float32, torch.bfloat16))
    return [torch.float32, torch.bfloat16] if half > single else [torch.float32]


def prepare_update(c: RunConfig, spec: TaskSpec, device: torch.device) -> Callable[[], object]:
    """Prepare one update of both models, to be called again and again."""
    learner = make_learner(c, spec, device)
    batch = random_batch(c.make_agent(spec))
    return lambda: learner.update(batch)


def prepare_decision(c: RunConfig, spec: TaskSpec, device: torch.device, environments: int = 1) -> Callable[[], object]:
    """Prepare one decision for all environments, to be called again and again."""
    policy = make_policy(c, spec, device)
    episodes = Lockstep(policy, range(environments), exploration=1.0)
    observations = blank_observations(c.make_agent(spec).data, environments)
    return lambda: episodes.act(observations)


def operations(action: Callable[[], object]) -> float:
    """Count floating-point operations of one call, as torch counts them (attention: all pairs of queries and keys)."""
    with FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops())


def print_shape(shape: Shape, device: torch.device, threads: int | None, overrides: list[str]) -> None:
    """Print decisions and updates in each precision. threads: of the preset, or else torch's, if None."""
    settings = [f"qt-tdm.learner.batch_size={shape.batch_size}", *overrides]
    threads = threads or load_config(RunConfig, preset_path(shape.preset), overrides=settings).threads
    threads = threads or torch.get_num_threads()
    spec, repeats = shape.spec, 30 if shape.preset == "laptop" or device.type == "cuda" else 3
    compile_both = [f"qt-tdm.{part}.compile=true" for part in ("planner", "learner")]
    for dtype in precisions(device, threads):
        precision = str(dtype).removeprefix("torch.")
        plain, compiled = (
            load_config(RunConfig, preset_path(shape.preset), overrides=[f"precision={precision}", *settings, *more])
            for more in ([], compile_both)
        )
        cases = [
            ("decision", prepare_decision, plain, shape.decision_reference),
            ("update", prepare_update, plain, shape.update_reference),
        ]
        if device.type == "cuda":  # where it is worth its minutes
            cases += [
                ("decision, compiled", prepare_decision, compiled, shape.decision_reference),
                ("16 decisions, compiled", partial(prepare_decision, environments=16), compiled, None),
                ("update, compiled", prepare_update, compiled, shape.update_reference),
            ]
        rows = []
        with cpu_threads(threads):
            # Before and after: a machine shared with others does not always have the same speed to give.
            before = product_rate(device, dtype, threads)
            for what, prepare, config, reference in cases:
                seconds = min(timings(prepare(config, spec, device), device, repeats))
                rows.append((what, seconds, operations(prepare(plain, spec, device)), reference))
            rate = max(before, product_rate(device, dtype, threads))
        for what, seconds, flops, reference in rows:
            published = f"{1e3 * reference:.0f}" if reference else "-"
            print(
                f"{shape.name:24}{precision:>10}{threads:8}{rate / 1e9:10.0f}{flops / 1e9:8.2f}{1e3 * seconds:10.1f}"
                f"{flops / seconds / rate:10.0%}{published:>11}  {what}"
            )


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for. ConfigError if they are wrong."""
    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"--threads {options.threads}: want at least 1")
    device = choose_device(options.device)
    shapes = [shape for shape in SHAPES if options.only in shape.name]
    if not shapes:
        names = ", ".join(shape.name for shape in SHAPES)
        raise ConfigError(f"--only {options.only}: no such shape; want a part of one of: {names}")
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else device)
    print(
        f"{'':24}{'precision':>10}{'threads':>8}{'GFLOP/s':>10}{'GFLOP':>8}{'ms':>10}{'utilised':>10}{'published':>11}"
    )
    for shape in shapes:
        print_shape(shape, device, options.threads, options.set)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the preset's, else torch's)")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every shape")
    options = parser.parse_args(arguments)
    try:
        measure(options)
    except ConfigError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not options.only:
        from qttdm.deploy.bench.cluster import print_cluster  # not at the top: Ray takes a second to import
        from qttdm.deploy.bench.replay import print_replay
        from qttdm.deploy.bench.service import print_service

        print_service(options.device, options.threads, options.set)
        print_replay()
        print_cluster()
    return 0


if __name__ == "__main__":
    sys.exit(main())
