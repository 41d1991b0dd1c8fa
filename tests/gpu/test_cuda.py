"""The same results on a CUDA device, and bfloat16 close to them (`make test-gpu`).

Twins for a machine without a GPU: tests/test_devices.py; of compiled decisions tests/planner_service/policies.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qttdm.common.config import load_config
from qttdm.common.contracts import TaskSpec
from qttdm.common.metrics.gpu import report_gpu
from qttdm.deploy.bench.models import random_batch
from qttdm.deploy.cluster.seed_run import evaluating_policy
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.build import make_learner, make_policy
from qttdm.planner_service.policies.lockstep import Lockstep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SPEC = TaskSpec(24, 6, 2, 1000, terminates=True)


def config(*overrides: str, agent: str = "qt-tdm") -> RunConfig:
    small = {
        "qt-tdm": "{tdm: {dropout: 0.0, head_dropout: 0.0}, qt: {dropout: 0.0}, planner: {samples: 64}}",
        "tdm": "{tdm: {dropout: 0.0, head_dropout: 0.0}, planner: {samples: 64}}",
        "qt": "{qt: {dropout: 0.0}}",
        "mlp": "{model: {members: 2, particles: 2, probabilistic: true}, planner: {samples: 64}}",
        "iql": "{iql: {width: 64}}",
        "twm": "{world_model: {dropout: 0.0}}",
    }
    overrides = (f"{agent}={small[agent]}", f"{agent}.learner.batch_size=8", *overrides)
    return load_config(RunConfig, preset_path("paper-dmc"), overrides=overrides, agent=agent)


def losses(device: str, precision: str) -> dict[str, float]:
    torch.manual_seed(0)
    c = config(f"precision={precision}")
    learner = make_learner(c, SPEC, torch.device("cpu"))
    state = learner.state()
    on_device = make_learner(c, SPEC, torch.device(device))
    for part in on_device.parts:
        part.load_state({k.removeprefix(f"{part.name}/"): v for k, v in state.items() if k.startswith(f"{part.name}/")})
    for _ in range(3):
        on_device.update(random_batch(c.make_agent(SPEC)))
    return on_device.drain()


def test_updates_on_the_gpu_equal_those_on_the_cpu():
    assert losses("cuda", "float32") == pytest.approx(losses("cpu", "float32"), rel=1e-3, abs=1e-4)


def test_bfloat16_updates_come_close():
    assert losses("cuda", "bfloat16") == pytest.approx(losses("cpu", "float32"), rel=0.1, abs=0.05)


@pytest.mark.parametrize("agent", ["qt-tdm", "tdm", "qt", "mlp", "iql", "twm", "trajectory-transformer", "generalist"])
def test_policies_act_on_the_gpu(agent):
    c = config(agent=agent)
    policy = make_policy(c, SPEC, torch.device("cuda"))
    policy.load(make_learner(c, SPEC, torch.device("cuda")).weights())
    observations = {"observations": np.random.default_rng(0).standard_normal((3, SPEC.obs_dim), np.float32)}
    first = Lockstep(policy, [0, 1, 2], exploration=1.0).act(observations)
    assert first.shape == (3, SPEC.action_dim)
    assert (np.abs(first) <= 1).all()
    assert Lockstep(policy, [0, 1, 2], exploration=1.0).act(observations) == pytest.approx(first)


def test_updates_are_timed_on_the_gpu_without_waiting_for_it_and_its_use_is_told():
    c = config()
    learner = make_learner(c, SPEC, torch.device("cuda"))
    for _ in range(3):
        learner.update(random_batch(c.make_agent(SPEC)))
    torch.cuda.synchronize()
    learner.update(random_batch(c.make_agent(SPEC)))  # the laps before have ended: they are reported
    report_gpu(learner.telemetry, learner.device)
    told = learner.telemetry.snapshot()
    for part in ("copy", "compute"):
        total, *counts = told["qttdm_update_seconds", part]
        assert sum(counts) >= 3
        assert total > 0
    memory = {use: told["qttdm_gpu_memory_bytes", use] for use in ("allocated", "total")}
    assert 0 < memory["allocated"] < memory["total"]
    assert 0 <= told["qttdm_gpu_utilisation_ratio", ""] <= 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_decision_is_the_uncompiled_one_for_every_size_of_batch(precision):
    few = ["qt-tdm.planner.iterations=2", "qt-tdm.planner.horizon=2", f"precision={precision}"]
    plain, compiled = (
        make_policy(config(*few, f"qt-tdm.planner.compile={on}"), SPEC, torch.device("cuda"))
        for on in ("false", "true")
    )
    weights = make_learner(config(*few), SPEC, torch.device("cuda")).weights()
    for policy in (plain, compiled):
        policy.load(weights)
    compiled.warm_up(4)
    for environments in (1, 3, 4):
        observations = np.random.default_rng(0).standard_normal((environments, SPEC.obs_dim), np.float32)
        decided = []
        for policy in (plain, compiled):
            episodes = [policy.start(seed, 0.0) for seed in range(environments)]
            decided.append([policy.decide(episodes, {"observations": observations}) for _ in range(3)])
        actions = [[d.actions for d in decisions] for decisions in decided]
        # Fused, products round differently; a sample carried over the edge of a bin is one bin further.
        assert np.mean(np.abs(np.subtract(*actions)) < 0.02) > 0.9
        assert decided[1][-1].values == pytest.approx(decided[0][-1].values, rel=0.02, abs=0.02)


def test_an_evaluator_with_a_gpu_plans_on_it():
    policy = evaluating_policy(config(), SPEC, lambda: None)
    assert (policy.device.type, policy.bfloat16) == ("cuda", True)
    assert evaluating_policy(config("precision=float32"), SPEC, lambda: None).bfloat16 is False
    assert evaluating_policy(config("device=cpu"), SPEC, lambda: None).device.type == "cpu"


def test_a_compiled_decision_is_few_launches():
    """CUDA's own count: a captured decision is the replay of a graph, and what brings its inputs there."""
    policy = make_policy(
        config("qt-tdm.planner.compile=true", "qt-tdm.planner.iterations=2"), SPEC, torch.device("cuda")
    )
    policy.warm_up(1)
    episodes = Lockstep(policy, [0], exploration=0.0)
    observations = {"observations": np.zeros((1, SPEC.obs_dim), np.float32)}
    episodes.act(observations)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        episodes.act(observations)
    called = {event.key: event.count for event in profile.key_averages()}
    assert called.get("cudaGraphLaunch", 0) >= 1
    assert called.get("cudaLaunchKernel", 0) < 100


def test_nothing_in_a_decision_waits_for_the_gpu():
    policy = make_policy(config(), SPEC, torch.device("cuda"))
    planner, device = policy.planner, torch.device("cuda")
    noise = planner.draw([torch.Generator(device).manual_seed(0)])
    carry = planner.begin(1, device)
    context = {"observations": torch.zeros(1, SPEC.obs_dim, device=device)}
    planner.plan(context, carry, noise, explore=True)  # constants are made the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        planner.plan(context, carry, noise, explore=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
