"""Collectors and evaluators one at a time, with a learner and shards that say what the test wants."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import nn

from qttdm.actors.evaluator import MOST_ATTEMPTS
from qttdm.actors.remote import CollectorActor, EvaluatorActor
from qttdm.actors.settings import ActorSettings
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import GENERATION, Weights
from qttdm.deploy.configs.cluster_config import NAMESPACE
from qttdm.learner.permits import Permit
from qttdm.planner_service.policies.greedy import GreedyPolicy
from qttdm.replay.codec import decode
from tests.fakes import point_env, tiny_data, tiny_qt
from tests.remote.live import PATIENCE

pytestmark = pytest.mark.ray

VERSION = GENERATION + 7


def policy(networks: int = 0) -> GreedyPolicy:
    """With random networks, a function of that number."""
    qt = tiny_qt(networks)
    return GreedyPolicy(qt, nn.ModuleDict({"qt": qt}), tiny_data(), torch.device("cpu"))


def weights(version: int) -> Weights:
    return Weights.of(policy().networks, version)


def own_policy(still_waiting: object) -> GreedyPolicy:
    """An actor's."""
    return policy(99)


def settings(directory: Path, **changes: Any) -> ActorSettings:
    values: dict[str, Any] = {
        "run_dir": directory,
        "seed": 3,
        "data": tiny_data(),
        "make_env": partial(point_env, 5),
        "make_policy": own_policy,
        "envs": 1,
        "threads": 1,
        "max_staleness": 100,
        "hang_seconds": 60.0,
        "timeout_seconds": 30.0,
    }
    return ActorSettings(**values | changes)


class ScriptedLearner:
    """Gives permits by a list, and publishes with each that tells of newer weights; nobody is sent any."""

    def __init__(self, permits: list[Permit], held_back: int = 0, slow: float = 0.0) -> None:
        """held_back: how often the newest weights are asked for in vain. slow: seconds that the first permit takes."""
        self.permits, self.held_back, self.slow = permits, held_back, slow
        self.version_now = VERSION
        self.asked = 0

    def request_collect(self, actor: int, process: str, stored: int) -> Permit:
        time.sleep(self.slow)
        self.slow = 0.0
        permit = self.permits.pop(0)
        self.version_now = max(self.version_now, permit.version)
        return permit

    def newest(self) -> tuple[list[ray.ObjectRef], int, int] | None:
        self.asked += 1
        if self.asked > 1 and self.held_back:
            self.held_back -= 1
            return None
        now = weights(self.version_now)
        return [ray.put(now.values)], now.version, now.checksum

    def version(self) -> int:
        return self.version_now

    def times_asked(self) -> int:
        """For the newest weights."""
        return self.asked


class SlowShard:
    """Keeps what it is given, the first of it after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.records = seconds, []

    def next_number(self, actor: int) -> int:
        return len(self.records)

    def insert(self, record: bytes) -> None:
        time.sleep(self.seconds)
        self.seconds = 0.0
        self.records.append(record)

    def stored(self) -> list[bytes]:
        return self.records


@pytest.fixture
def start(cluster):
    """Makes an actor of a class; their ends are the test's."""
    actors = []

    def make(name: str, kind: type, *arguments: Any) -> Any:
        groups = {"control": 2, "insert": 1}
        options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "concurrency_groups": groups}
        actors.append(ray.remote(**options)(kind).remote(*arguments))
        return actors[-1]

    yield make
    for actor in actors:
        ray.kill(actor)


def collect(start, directory: Path, learner: tuple[Any, ...], shard_seconds: float = 0.0, **changes: Any) -> tuple:
    """Run a collector to its end; returns the learner and the episodes that were stored."""
    scripted = start("learner", ScriptedLearner, *learner)
    shard = start("shard", SlowShard, shard_seconds)
    ray.get([scripted.version.remote(), shard.stored.remote()], timeout=PATIENCE)  # they are there
    collector = start("actor", CollectorActor, settings(directory, **changes), 0, "learner", ["shard"])
    ray.get(collector.run.remote(), timeout=PATIENCE)
    return scripted, [decode(record) for record in ray.get(shard.stored.remote(), timeout=PATIENCE)]


class TestStaleness:
    def test_with_weights_older_than_configured_it_waits_for_newer_ones(self, start, tmp_path):
        versions = [VERSION, VERSION + 100, VERSION + 101]
        permits = [*(Permit("collect", version=version) for version in versions), Permit("done")]
        learner, episodes = collect(start, tmp_path, (permits, 3))
        assert [e.oldest_weights for e in episodes] == [VERSION, VERSION, VERSION + 101]
        assert [e.newest_weights for e in episodes] == [VERSION, VERSION, VERSION + 101]
        assert ray.get(learner.times_asked.remote()) == 1 + 3 + 1

    def test_weights_that_come_while_others_are_loaded_are_used_next(self, start, tmp_path):
        start("learner", ScriptedLearner, [])
        start("shard", SlowShard)
        collector = CollectorActor(settings(tmp_path), 0, "learner", ["shard"])  # here: to be in the middle of it
        load = collector.policy.load

        def and_more_come(loaded: Weights) -> None:
            load(loaded)
            if loaded.version < VERSION + 3:
                more = weights(loaded.version + 1)
                collector.take(more.values, more.version, more.checksum)

        collector.policy.load = and_more_come
        first = weights(VERSION)
        collector.take(first.values, first.version, first.checksum)
        (episode,) = collector.collect([0], False, 0.0, collector._before_decision)
        # Those of VERSION were loaded before the reset, the next ones before each decision.
        assert (episode.oldest_weights, episode.newest_weights) == (VERSION + 1, VERSION + 3)


def test_waiting_for_whatever_takes_long_is_in_the_event_log(start, tmp_path):
    permits = [
        *[Permit("wait", 0.25)] * 10,
        *[Permit("wait", 0.25, reason="the learner to start")] * 8,
        Permit("collect", version=VERSION + 101),
        Permit("done"),
    ]
    collect(start, tmp_path, (permits, 25, 1.8), shard_seconds=1.8, timeout_seconds=1.0)
    expected = [
        "actor 0: has waited N s for a permit from the learner",
        "actor 0: has waited N s for the learner to make its updates",
        "actor 0: has waited N s for the learner to start",
        "actor 0: has waited N s for the learner to publish weights",
        "actor 0: has waited N s for shard 0 to store an episode",
    ]
    lines = (tmp_path / "events.log").read_text().splitlines()
    told = [re.sub(r"\d+ s", "N s", line.split("Z ", 1)[1]) for line in lines]
    assert [what for what in dict.fromkeys(told) if what in expected] == expected
    assert told.count(expected[1]) < 10  # not at every look


class Unstable:
    """Makes environments; those that are begun with certain seeds fail at the second step."""

    def __init__(self, bad: set[int]) -> None:
        """bad: seeds as an environment is given them."""
        self.bad, self.made, self.closed, self.seeds = bad, 0, 0, []

    def __call__(self) -> TaskEnv:
        env = point_env(5)
        reset, step, close = env.reset, env.step, env.close
        self.made += 1

        def remember(seed: int) -> tuple[np.ndarray, dict[str, Any]]:
            self.seeds.append(seed)
            env.broken = seed in self.bad
            return reset(seed=seed)

        def break_or_step(action: np.ndarray) -> Any:
            if env.broken and env.unwrapped.age == 1:
                raise RuntimeError("Physics Error")
            return step(action)

        def count() -> None:
            self.closed += 1
            close()

        env.reset, env.step, env.close = remember, break_or_step, count
        return env


def start_states(attempt: int) -> list[int]:
    """Of an evaluation of two episodes, as environments are given them."""
    again = (attempt,) if attempt else ()
    return [derive_seed(3, "evaluation", i, *again) % 2**31 for i in range(2)]


class TestEvaluator:
    """In this process: it needs nobody."""

    def evaluator(self, directory: Path, bad: set[int]) -> tuple[EvaluatorActor, Unstable]:
        environments = Unstable(bad)
        return EvaluatorActor(settings(directory, make_env=environments, envs=2)), environments

    def evaluate(self, evaluator: EvaluatorActor, version: int = VERSION) -> tuple[list[float], float | None]:
        w = weights(version)
        returns, success, _ = evaluator.evaluate(w.values, w.version, w.checksum)
        return returns, success

    def test_where_the_simulator_fails_it_tries_other_start_states(self, tmp_path):
        evaluator, environments = self.evaluator(tmp_path, {start_states(0)[1]})
        returns, _ = self.evaluate(evaluator)
        assert len(returns) == 2
        assert environments.seeds == [*start_states(0), *start_states(1)]
        assert (environments.made, environments.closed) == (4, 2)
        assert evaluator.evaluator.telemetry.snapshot()["qttdm_failures_total", "environment"] == 1
        (line,) = (tmp_path / "events.log").read_text().splitlines()
        assert "evaluator: replaces its environments, which failed in the evaluation after 7 updates: " in line
        assert "Physics Error" in line

    def test_a_few_times_and_then_gives_this_one_up(self, tmp_path):
        bad = {start_states(attempt)[0] for attempt in range(MOST_ATTEMPTS)}
        evaluator, environments = self.evaluator(tmp_path, bad)
        assert self.evaluate(evaluator) == ([], None)
        assert len(environments.seeds) == 2 * MOST_ATTEMPTS
        last = (tmp_path / "events.log").read_text().splitlines()[-1]
        assert last.endswith("gives up the evaluation after 7 updates: its environments have failed or hung 3 times")
        environments.bad = set()
        assert len(self.evaluate(evaluator, VERSION + 1)[0]) == 2

    def test_a_process_that_was_killed_changes_no_result(self, tmp_path):
        """The next one is asked for the same again: it goes on with the attempt that was under way."""
        first, _ = self.evaluator(tmp_path, {start_states(0)[0]})
        result = self.evaluate(first)
        again, environments = self.evaluator(tmp_path, set())
        assert self.evaluate(again) == result
        assert environments.seeds == start_states(1)
