"""What measuring costs, in `make bench`: the time of its calls over the time of what they measure, in one run.

A decision and an update are the laptop preset's, the smallest that learns anything; an insert and a draw those of
deploy/bench_replay.py. Reports are made every two seconds, whatever a process does: their share is of that time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qttdm.actors.measured import MeasuredPolicy
from qttdm.common.config import load_config
from qttdm.common.environments.task_env import TaskSpec
from qttdm.common.instruments import Component
from qttdm.common.reporter import REPORT_EVERY, measure_process
from qttdm.common.telemetry import Activities, Telemetry
from qttdm.deploy.agent import make_learner, make_policy
from qttdm.deploy.bench import random_batch
from qttdm.deploy.bench_replay import ACTION_DIM, BATCH_SIZE, DISCOUNT, OBS_DIM, WINDOW, random_episodes, shard_config
from qttdm.deploy.run_config import RunConfig, preset_path
from qttdm.learner.measure import TimeSpent
from qttdm.learner.stopwatch import Stopwatch
from qttdm.planner_service.policy import Decisions
from qttdm.replay.codec import encode
from qttdm.replay.shard import ReplayShard

CPU = torch.device("cpu")
SPEC = TaskSpec(5, 1, 2, 500, terminates=False, has_success=False)
"""cartpole's"""


@dataclass(frozen=True)
class Cost:
    """Of measuring one thing, in seconds, best of several."""

    what: str
    itself: float
    measuring: float

    @property
    def share(self) -> float:
        """What measuring adds."""
        return self.measuring / self.itself


def best(action: Callable[[], object], times: int, rounds: int = 5) -> float:
    """Seconds of a call: the fastest round's mean."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(times):
            action()
        seconds.append((time.perf_counter() - started) / times)
    return min(seconds)


class Decided:
    """A policy that has always decided already: what is left of a MeasuredPolicy's time is measuring."""

    weights_version = 0

    def __init__(self, actions: np.ndarray, decided: Decisions | None) -> None:
        self.actions, self.decided = actions, decided

    def act(self, observations: np.ndarray) -> np.ndarray:
        """As Policy."""
        return self.actions


def of_a_decision(config: RunConfig) -> Cost:
    """Of one environment: MeasuredPolicy."""
    policy = make_policy(config, SPEC, CPU)
    policy.begin([0], exploration=1.0)
    observations = np.zeros((1, SPEC.obs_dim), np.float32)
    itself = best(lambda: policy.act(observations), times=3)
    telemetry = Telemetry.silent("actor")
    decided = Decided(policy.act(observations), policy.decided)
    seen = MeasuredPolicy(decided, telemetry, Activities(telemetry, "qttdm_actor_seconds_total", rest="simulating"))  # type: ignore[arg-type]
    return Cost("decision", itself, best(lambda: seen.act(observations), times=300))


def of_an_update(config: RunConfig) -> Cost:
    """TimeSpent and Stopwatch, as LearningLoop uses them."""
    learner = make_learner(config, SPEC, CPU)
    batch = random_batch(config, SPEC.obs_dim, SPEC.action_dim, config.learner.batch_size)
    itself = best(lambda: learner.update(batch), times=5)
    telemetry = Telemetry.silent("learner")
    spent = TimeSpent(telemetry)
    copying, computing = (
        Stopwatch(CPU, lambda seconds, part=part: telemetry.observe("qttdm_update_seconds", seconds, part=part))  # type: ignore[misc]
        for part in ("copy", "compute")
    )

    def measure() -> None:
        with spent.on("waiting_for_batches"):
            pass
        with spent.on("copying"), copying.lap():
            pass
        with spent.on("updating"), computing.lap():
            pass

    return Cost("update", itself, best(measure, times=300))


def of_a_shard() -> Iterator[Cost]:
    """An insert, on disk at the end, and a draw."""
    telemetry, episodes = Telemetry.silent("replay"), random_episodes()
    with tempfile.TemporaryDirectory() as folder:
        shard = ReplayShard(Path(folder), shard_config("uniform"), OBS_DIM, ACTION_DIM, WINDOW, DISCOUNT, seed=0)
        for what, itself, name in (
            ("insert", best(lambda: shard.insert(encode(next(episodes))), 10), "qttdm_replay_insert_seconds"),
            ("draw", best(lambda: shard.sample(BATCH_SIZE), 10), "qttdm_replay_sample_seconds"),
        ):

            def measure(name: str = name) -> None:
                with telemetry.timed(name):
                    pass

            yield Cost(what, itself, best(measure, times=300))
        shard.close()


def of_reports(component: Component) -> Cost:
    """A report made and packed, over the time until the next."""
    telemetry = Telemetry.silent(component)
    measure_process(telemetry)

    def fail(error: Exception) -> None:
        raise error

    return Cost(f"reports of a {component}", REPORT_EVERY, best(lambda: telemetry.report(fail).packed(), times=20))


def costs() -> list[Cost]:
    """All of them."""
    config = load_config(RunConfig, preset_path("laptop"))
    torch.set_num_threads(config.threads or torch.get_num_threads())
    reports = [of_reports(component) for component in ("learner", "actor", "replay")]
    return [of_a_decision(config), of_an_update(config), *of_a_shard(), *reports]


def print_metrics() -> None:
    """One line each."""
    print(f"\n{'what measuring costs':24}{'ms':>10}{'us':>10}{'share':>10}")
    for cost in costs():
        print(f"{cost.what:24}{1e3 * cost.itself:10.2f}{1e6 * cost.measuring:10.1f}{cost.share:10.2%}")
