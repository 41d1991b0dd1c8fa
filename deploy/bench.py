"""`make bench`: decision and update times as ratios to what this machine's matrix products reach, in one run.

Utilisation = floating-point operations the algorithm needs / (measured time x measured fp32 or bf16 product rate).
Operations counted are multiply-adds (2 each) of matrix products only; a linear layer with W weights needs 2 W per
token forward, and 4 W more backward. The formulas are `decision_flops` and `update_flops` below.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.batch import Batch
from common.config import load_config
from common.environments.task_env import TaskSpec
from deploy.agent import choose_device, make_learner, make_policy
from deploy.run_config import RunConfig, preset_path
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

ECONOMIES: dict[str, dict[str, Any]] = {
    "sample_decay=1.5": {"sample_decay": 1.5},
    "early_stop": {"early_stop": True},
    "noise_exponent=2": {"noise_exponent": 2.0},
    "keep_elites": {"keep_elites": 8},
    "terminal first_dimension": {"terminal_value": "first_dimension"},
}


def linear_weights(dim: int) -> tuple[int, int]:
    """Weights of a block's key-value projection, and of all else in it: 2 D^2 and 10 D^2."""
    return 2 * dim * dim, 10 * dim * dim


def trunk_macs(dim: int, layers: int, tokens: int, read: int) -> int:
    """Multiply-adds of one sequence: all tokens in all blocks but the last, which computes what is read."""
    key_value, rest = linear_weights(dim)
    return (layers - 1) * tokens * (key_value + rest) + tokens * key_value + read * rest


def head_macs(inputs: int, hidden: int, layers: int, outputs: int) -> int:
    """Multiply-adds of a prediction head for one row."""
    return inputs * hidden + (layers - 1) * hidden * hidden + hidden * outputs


def attention_macs(dim: int, layers: int, queries_keys: int) -> int:
    """Scores and weighted sums for that many query-key pairs."""
    return 2 * dim * layers * queries_keys


def decision_flops(c: RunConfig, m: int, n: int, environments: int = 1) -> float:
    """Algorithm 2 for E environments: sampled sequences in every iteration, proposed ones once."""
    p, t, q = c.planner, c.tdm, c.qt
    heads = head_macs(t.embed_dim, t.head_dim, t.head_layers, m) + head_macs(t.embed_dim, t.head_dim, t.head_layers, 1)
    sequence = 0
    for h in range(p.horizon):
        tokens = n if h == 0 else n + 1
        sequence += trunk_macs(t.embed_dim, t.num_layers, tokens, 1) + heads + (m * t.embed_dim if h else 0)
        seen = h * (n + 1) + 1
        pairs = tokens * seen + tokens * (tokens - 1) // 2
        sequence += attention_macs(t.embed_dim, t.num_layers - 1, pairs) + attention_macs(t.embed_dim, 1, seen + n)
    q_heads = 2 * (q.embed_dim * q.embed_dim + q.embed_dim * q.bins)
    choose = m * q.embed_dim + n * (12 * q.num_layers * q.embed_dim**2 + q_heads)
    value = choose if p.terminal_value == "greedy" else choose // n
    if c.agent == "tdm":
        choose = value = 0
    sampled = sum(p.samples_at(i) for i in range(p.iterations)) * (sequence + value)
    proposed = p.qt_samples * (sequence + p.horizon * choose + value) if choose else 0
    root = trunk_macs(t.embed_dim, t.num_layers, 1, 0)
    return 2.0 * environments * (sampled + proposed + root)


def update_flops(c: RunConfig, m: int, n: int, batch: int) -> float:
    """Eq. 8 forward and backward on B windows, Eq. 9 forward and backward on B * S states, two target passes."""
    t, q, length = c.tdm, c.qt, c.tdm.window
    tokens = length * (n + 1)
    heads = head_macs(t.embed_dim, t.head_dim, t.head_layers, m) + head_macs(t.embed_dim, t.head_dim, t.head_layers, 1)
    tdm = trunk_macs(t.embed_dim, t.num_layers, tokens, length) + length * (heads + m * t.embed_dim)
    # Causal attention needs half of the square.
    tdm += attention_macs(t.embed_dim, t.num_layers - 1, tokens * (tokens + 1) // 2)
    tdm += attention_macs(t.embed_dim, 1, length * (tokens + n + 1) // 2)
    q_token = 12 * q.num_layers * q.embed_dim**2 + 2 * (q.embed_dim * q.embed_dim + q.embed_dim * q.bins)
    qt_online, qt_target = n * q_token, (n if n > 1 else 0) * q_token + q_token
    return 2.0 * batch * (3 * tdm + c.learner.qt.states_per_window * (3 * qt_online + qt_target))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, best of several."""
    size = 1536 if device.type == "cpu" else 8192
    if device.type == "cpu" and dtype != torch.float32:
        size = 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timings(lambda: a @ b, device, repeats=5))


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
    assert isinstance(policy, MPCPolicy)
    policy.begin(list(range(environments)), exploration=1.0)
    observations = np.zeros((environments, spec.obs_dim), np.float32)
    return min(timings(lambda: policy.act(observations), device, repeats))


def time_update(c: RunConfig, spec: TaskSpec, device: torch.device, repeats: int) -> float:
    """Best seconds of one update of both models."""
    learner = make_learner(c, spec, device)
    batch = random_batch(c, spec.obs_dim, spec.action_dim, c.learner.batch_size)
    return min(timings(lambda: learner.update(batch), device, repeats))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every shape")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    rates = {"float32": product_rate(device, torch.float32), "bfloat16": product_rate(device, torch.bfloat16)}
    print(f"{name}: matrix products " + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rates.items()))
    # A CPU without bfloat16 instructions emulates them: there is nothing to gain and minutes to lose.
    precisions = [p for p, rate in rates.items() if p == "float32" or rate > rates["float32"]]

    print(f"\n{'':24}{'precision':>10}{'GFLOP':>8}{'ms':>10}{'utilised':>10}{'published':>11}")
    for shape in SHAPES:
        if options.only not in shape.name:
            continue
        for precision in precisions:
            overrides = [f"precision={precision}", f"learner.batch_size={shape.batch_size}", *options.set]
            c = load_config(RunConfig, preset_path(shape.preset), overrides=overrides)
            spec = TaskSpec(shape.obs_dim, shape.action_dim, 1, 1000, terminates=False, has_success=False)
            repeats = 30 if shape.preset == "laptop" or device.type == "cuda" else 3
            for what, seconds, flops, reference in [
                (
                    "decision",
                    time_decision(c, spec, device, repeats),
                    decision_flops(c, shape.obs_dim, shape.action_dim),
                    shape.decision_reference,
                ),
                (
                    "update",
                    time_update(c, spec, device, repeats),
                    update_flops(c, shape.obs_dim, shape.action_dim, c.learner.batch_size),
                    shape.update_reference,
                ),
            ]:
                published = f"{1e3 * reference:.0f}" if reference else "-"
                print(
                    f"{shape.name:24}{precision:>10}{flops / 1e9:8.2f}{1e3 * seconds:10.1f}"
                    f"{flops / seconds / rates[precision]:10.0%}{published:>11}  {what}"
                )

    shape = next((s for s in SHAPES if options.only in s.name), SHAPES[0])
    print(f"\nplanner economies, {shape.name}, decision time against the exact algorithm's in this run")
    base = load_config(RunConfig, preset_path(shape.preset), overrides=options.set)
    spec = TaskSpec(shape.obs_dim, shape.action_dim, 1, 1000, terminates=False, has_success=False)
    repeats = 30 if shape.preset == "laptop" or device.type == "cuda" else 2
    exact = time_decision(base, spec, device, repeats)
    for label, changes in ECONOMIES.items():
        c = base.model_copy(update={"planner": base.planner.model_copy(update=changes)})
        print(f"{label:26}{time_decision(c, spec, device, repeats) / exact:6.2f}")


if __name__ == "__main__":
    main()
