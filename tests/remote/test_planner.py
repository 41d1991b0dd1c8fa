"""The planner service as a Ray actor: the local policy's actions with the learner's weights, whoever else asks."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from common.weights import Weights
from deploy.cluster import NAMESPACE, RESTARTED
from learner.remote import Broadcast
from planner_service.planner import Planner, PlannerConfig
from planner_service.policy import MPCPolicy
from planner_service.remote import PlannerActor, PlannerSettings, ServicePolicy
from planner_service.service import AskingConfig, ServiceConfig
from tests.fakes import tiny_qt, tiny_tdm
from tests.remote.live import PATIENCE

pytestmark = pytest.mark.ray

SMALL = PlannerConfig(samples=12, elites=4, qt_samples=3, iterations=3, horizon=2)
CPU = torch.device("cpu")
VERSION = 10**9 + 7


def policy(networks: int) -> MPCPolicy:
    """With random networks, a function of that number."""
    return MPCPolicy(Planner(SMALL, 0.95, tiny_tdm(networks), tiny_qt(networks)), CPU)


class Publisher:
    """The learner, as planners see it: weights that it sends, and gives to who asks."""

    def __init__(self, planners: list[str]) -> None:
        self.broadcast = Broadcast(planners)

    def publish(self, networks: int, version: int) -> None:
        self.broadcast.send(Weights.of(policy(networks).networks, version))
        ray.wait(list(self.broadcast.answers.values()), timeout=PATIENCE)

    def newest(self):
        return self.broadcast.newest


class Service:
    """A planner with other networks than the learner's to begin with, and that learner."""

    def __init__(self, directory: Path, **service) -> None:
        own = PlannerSettings(
            run_dir=directory,
            service=ServiceConfig(**service),
            make_policy=partial(policy, 99),
            obs_dim=3,
            threads=1,
            hang_seconds=PATIENCE,
        )
        self.learner = self._create("learner", Publisher, [], concurrency_groups={"control": 1})
        self.actor = self._create("planner", PlannerActor, own, "learner")
        self.publish(0, VERSION)

    @staticmethod
    def _create(name, kind, *arguments, **options):
        return ray.remote(**RESTARTED, name=name, namespace=NAMESPACE, num_cpus=0, **options)(kind).remote(*arguments)

    def publish(self, networks: int, version: int) -> None:
        ray.get(self.learner.publish.remote(networks, version), timeout=PATIENCE)

    def client(self) -> ServicePolicy:
        """An actor's policy, which has the learner's weights as well."""
        return ServicePolicy(AskingConfig(timeout_seconds=PATIENCE), "planner", local())

    def close(self) -> None:
        for actor in (self.actor, self.learner):
            ray.kill(actor)


@pytest.fixture
def start(cluster, tmp_path):
    """Makes a Service, whose end is the test's."""
    made = []

    def make(**more):
        made.append(Service(tmp_path, **more))
        return made[-1]

    yield make
    for service in made:
        service.close()


def local(networks: int = 0) -> MPCPolicy:
    """What an actor has of its own, with the learner's weights."""
    it = policy(networks)
    it.load(Weights.of(policy(networks).networks, VERSION))
    return it


def observations(environments: int, step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal((environments, 3)).astype(np.float32)


def play(it, seeds, decisions, exploration=0.0, first=0):
    """An episode's actions [decisions, E, N]."""
    it.begin(seeds, exploration)
    return np.stack([it.act(observations(len(seeds), first + step)) for step in range(decisions)])


def test_actions_are_the_local_policys_with_the_learners_weights(start):
    client = start().client()
    got = play(client, [3, 4], 5, exploration=1.0)
    np.testing.assert_allclose(got, play(local(), [3, 4], 5, exploration=1.0), atol=1e-5)
    assert not np.allclose(got, play(local(99), [3, 4], 5, exploration=1.0))
    assert client.weights_version == VERSION
    assert client.lost == 0


def test_actors_together_get_what_each_would_have_had_alone(start):
    service = start(max_wait_ms=50.0)
    got = {}

    def act(seed: int) -> None:
        got[seed] = play(service.client(), [seed], 6)

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_allclose(got[seed], play(local(), [seed], 6), atol=1e-5)
    status = ray.get(service.actor.stats.remote(), timeout=PATIENCE)
    assert status.answers == 24
    assert status.batches < 24


def test_episodes_that_ended_are_released(start):
    service = start()
    client = service.client()
    for seed in range(3):
        play(client, [seed, seed], 2)
    assert ray.get(service.actor.stats.remote(), timeout=PATIENCE).episodes == 2


def test_new_weights_are_used_from_the_next_decision_on(start):
    service = start()
    client = service.client()
    client.begin([0], 0.0)
    client.act(observations(1, 0))
    take = Weights.of(policy(5).networks, VERSION + 1)
    ray.get(service.actor.take.remote(take.values, take.version, take.checksum), timeout=PATIENCE)
    client.act(observations(1, 1))
    assert client.weights_version == VERSION + 1
    old = Weights.of(policy(0).networks, VERSION)
    ray.get(service.actor.take.remote(old.values, old.version, old.checksum), timeout=PATIENCE)
    client.act(observations(1, 2))
    assert client.weights_version == VERSION + 1
