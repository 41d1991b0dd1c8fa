"""`qttdm check TASK`: what an environment does under random actions, what to set for it, how long training takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from qttdm.common.contracts import TaskSpec
from qttdm.common.environments.make import make_raw
from qttdm.deploy.configs.run_config import RunConfig, check_fits
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.build import make_learner
from qttdm.deploy.runs.dry_run import dry_run, random_batch
from qttdm.deploy.runs.probe import Sample, complaints, guarded, is_reproducible, make_probed, probe

SECONDS = 5.0
"""of random actions, or DECISIONS if that is sooner"""
DECISIONS = 5_000
LIMIT = 1_000
"""steps of an episode that is tried without a time limit of its own"""


def check(config: RunConfig) -> Iterator[str]:
    """Yield the report, line by line. ConfigError, one line, for what a run would refuse or fail of.

    But for a missing time limit, which is tried and advised.
    """
    hang_seconds = config.cluster.hang_seconds
    with guarded(config.task, "making it", hang_seconds):
        raw = make_raw(config.task)
        raw.env.close()
    limited = raw.episode_steps is not None or config.env.episode_steps is not None
    if not limited:
        config = config.model_copy(update={"env": config.env.model_copy(update={"episode_steps": LIMIT})})
    with closing(make_probed(config.task, config.env, hang_seconds)) as env:
        spec = env.task_spec
        check_fits(config, spec)
        yield (
            f"{config.task}: {spec.obs_dim} numbers observed, {spec.action_dim} acted, at most {spec.episode_steps:,} "
            f"steps an episode, {spec.action_repeat} a decision"
        )
        sample = probe(env, DECISIONS, hang_seconds, seconds=SECONDS)
    yield from _described(sample)
    same = is_reproducible(config.task, config.env, hang_seconds)
    yield (
        "seeding: the same seed, the same episode"
        if same
        else ("seeding: the same seed gave ANOTHER episode; draw from self.np_random, after super().reset(seed=seed)")
    )
    for complaint in complaints(config.task, hang_seconds) or ["nothing to say"]:
        yield f"gymnasium's check_env: {complaint}"
    if not limited:
        yield (
            f"advice: it has no time limit of its own, which a run needs: --set env.episode_steps={LIMIT}, as "
            f"tried here, or as many steps as settle an episode"
        )
    for line in _advice(config, spec, sample):
        yield f"advice: {line}"
    yield _duration(config, sample)


def _described(sample: Sample) -> Iterator[str]:
    """Say what random actions gave."""
    rewards, seen = np.array(sample.rewards), np.stack(sample.observations)
    still = int((np.ptp(seen, axis=0) == 0).sum())
    yield f"observations: from {seen.min():.3g} to {seen.max():.3g}; {still} never change"
    yield (
        f"rewards of random actions, a decision: mean {rewards.mean():.3g}, std {rewards.std():.3g}, from "
        f"{rewards.min():.3g} to {rewards.max():.3g}, {np.mean(rewards != 0):.0%} of them not 0"
    )
    yield f"episodes: {sample.episodes} ended, {sample.terminated} of them by termination"
    yield f"speed: {sample.env_steps / sample.seconds:,.0f} steps/s"


def _advice(config: RunConfig, spec: TaskSpec, sample: Sample) -> Iterator[str]:
    """Say what to try."""
    decisions = spec.episode_decisions
    if not np.any(sample.rewards):
        yield "no reward in all that: a run has to stumble on one first; shape it, or expect a slow start"
    elif len({*sample.rewards}) == 1:
        yield "every reward was the same: nothing tells one action from another"
    if decisions > 1_000:
        repeat = -(-spec.episode_steps // 500)
        yield f"{decisions:,} decisions an episode are many: try --set env.action_repeat={repeat}"
    if decisions < 20 and spec.action_repeat > 1:
        yield f"{decisions} decisions an episode are few: try --set env.action_repeat=1"
    if spec.terminates and sample.episodes >= 5 and sample.terminated == 0:
        yield "no episode terminated: if none ever does, --set env.terminates=false spares predicting it"
    # TD-MPC2's rule of thumb (Hansen et al., 2024): a horizon of a fifth of the episode
    discount = float(np.clip(1 - 5 / max(decisions, 5), 0.95, 0.995))
    yield f"TD-MPC2's rule for {decisions} decisions an episode: --set {config.section}.discount={discount:.3g}"


def _duration(config: RunConfig, sample: Sample) -> str:
    """Estimate how long 100,000 steps take here: stepping, deciding and learning, one after the other."""
    agent = ActingAgent(config)
    decision = float(np.median(dry_run(agent, 20)[1])) / 1e3
    learner, batch = make_learner(config, agent.spec, agent.device), random_batch(agent.agent)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        learner.update(batch)
        times.append(time.perf_counter() - began)
    update = float(np.median(times)) * config.training.update_ratio
    step = sample.seconds / sample.env_steps * agent.spec.action_repeat
    minutes = 100_000 / agent.spec.action_repeat * (step + decision + update) / 60
    return (
        f"100,000 steps of {config.agent}: about {minutes:.0f} minutes here, evaluations apart (a decision: "
        f"{1e3 * step:.2g} ms to step, {1e3 * decision:.2g} to plan, {1e3 * update:.2g} to learn)"
    )
