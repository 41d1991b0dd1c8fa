"""The planner service as a Ray actor: the local policy's actions, and what its clients do when it is busy or gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import nn

from qttdm.common.weights import Weights
from qttdm.deploy.cluster.seed_run import RESTARTED
from qttdm.deploy.configs.cluster_config import NAMESPACE
from qttdm.learner.remote import Broadcast
from qttdm.planner_service.planners.mppi import MPPI, MPPIConfig
from qttdm.planner_service.policies.greedy import greedy_beside
from qttdm.planner_service.policies.planning import PlanningPolicy
from qttdm.planner_service.remote import PlannerActor, PlannerSettings, ServicePolicy
from qttdm.planner_service.serving.messages import Refusal, ServiceError
from qttdm.planner_service.serving.service import AskingConfig, ServiceConfig
from tests.fakes import Acting, tiny_data, tiny_qt, tiny_tdm
from tests.remote.live import PATIENCE, status_of, until

pytestmark = pytest.mark.ray

SMALL = MPPIConfig(samples=12, elites=4, qt_samples=3, iterations=3, horizon=2)
CPU = torch.device("cpu")
VERSION = 10**9 + 7


class HangingPolicy(PlanningPolicy):
    """Hangs in a decision as long as a file is there; takes the file away, so that it does so once."""

    trap: Path | None = None

    def decide(self, episodes, observations, deadline=None):
        if self.trap is not None and self.trap.exists():
            self.trap.unlink()
            time.sleep(10**6)
        return super().decide(episodes, observations, deadline)


def policy(networks: int, trap: Path | None = None) -> PlanningPolicy:
    """With random networks, a function of that number."""
    tdm, qt = tiny_tdm(networks), tiny_qt(networks)
    parts = nn.ModuleDict({"tdm": tdm, "qt": qt})
    it = HangingPolicy(MPPI(SMALL, 0.95, 2, tdm, qt), parts, tiny_data(), CPU)
    it.trap = trap
    return it


class Publisher:
    """The learner, as planners see it: weights that it sends, and gives to who asks."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have published nothing."""
        self.broadcast = Broadcast([])

    def publish(self, networks: int, version: int) -> None:
        self.broadcast.send(Weights.of(policy(networks).networks, version))
        ray.wait(list(self.broadcast.answers.values()), timeout=PATIENCE)

    def newest(self):
        return self.broadcast.newest


class Service:
    """A planner with other networks than the learner's to begin with."""

    def __init__(
        self, learner, directory: Path, name: str = "planner", published=True, hang_seconds=60.0, **service
    ) -> None:
        self.learner, self.trap = learner, directory / "trap"
        own = PlannerSettings(
            run_dir=directory,
            service=ServiceConfig(**service),
            make_policy=partial(policy, 99, self.trap),
            data=tiny_data(),
            threads=1,
            hang_seconds=hang_seconds,
        )
        ray.get(learner.forget.remote(), timeout=PATIENCE)
        self.name = name
        self.actor = create(self.name, PlannerActor, own, "learner")
        self.pid()  # it has started: how long clients wait for an answer does not include that
        if published:
            self.publish(0, VERSION)

    def publish(self, networks: int, version: int) -> None:
        ray.get(self.learner.publish.remote(networks, version), timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        return ray.get(self.actor.__ray_call__.remote(status_of), timeout=PATIENCE)

    def pid(self) -> int:
        return ray.get(self.actor.__ray_call__.remote(lambda self: os.getpid()), timeout=PATIENCE)

    def client(self, max_staleness: int = 1000, **asking) -> Acting:
        """An actor's policy, which has the learner's weights as well."""
        own = local().policy
        greedy = greedy_beside(own)
        return Acting(ServicePolicy(AskingConfig(**asking), self.name, own, greedy, max_staleness))


def create(name: str, kind: type, *arguments: Any, **options: Any) -> Any:
    return ray.remote(**RESTARTED, name=name, namespace=NAMESPACE, num_cpus=0, **options)(kind).remote(*arguments)


@pytest.fixture(scope="module")
def learner(cluster):
    actor = create("learner", Publisher, concurrency_groups={"control": 1})
    yield actor
    ray.kill(actor)


@pytest.fixture
def start(learner, tmp_path):
    """Makes a Service, whose end is the test's."""
    made = []

    def make(**more):
        made.append(Service(learner, tmp_path, **more))
        return made[-1]

    yield make
    for service in made:
        ray.kill(service.actor)


@pytest.fixture(scope="module")
def service(learner, tmp_path_factory):
    """One for all tests that leave its weights and its process as they are."""
    shared = Service(learner, tmp_path_factory.mktemp("shared"), "shared-planner", max_wait_ms=50.0)
    yield shared
    ray.kill(shared.actor)


def local(networks: int = 0) -> Acting:
    """What an actor has of its own, with the learner's weights."""
    it = policy(networks)
    it.load(Weights.of(policy(networks).networks, VERSION))
    return Acting(it)


def observations(environments: int, step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal((environments, 3)).astype(np.float32)


def play(it, seeds, decisions, exploration=0.0, first=0):
    """An episode's actions [decisions, E, N]."""
    it.begin(seeds, exploration)
    return np.stack([it.act(observations(len(seeds), first + step)) for step in range(decisions)])


def test_actions_are_the_local_policys_with_the_learners_weights(service):
    client = service.client()
    got = play(client, [3, 4], 5, exploration=1.0)
    np.testing.assert_allclose(got, play(local(), [3, 4], 5, exploration=1.0), atol=1e-5)
    assert not np.allclose(got, play(local(99), [3, 4], 5, exploration=1.0))
    assert client.weights_version == VERSION
    assert client.lost == 0


def test_actors_together_get_what_each_would_have_had_alone(service):
    got, before = {}, service.status()

    def act(seed: int) -> None:
        got[seed] = play(service.client(), [seed], 6)

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_allclose(got[seed], play(local(), [seed], 6), atol=1e-5)
    after = service.status()
    assert after["answers"] - before["answers"] == 24
    assert after["batches"] - before["batches"] < 24


def test_episodes_that_ended_are_released(service):
    client = service.client()
    play(client, [0, 0], 2)
    before = service.status()["episodes"]
    for seed in (1, 2):
        play(client, [seed, seed], 2)
    assert service.status()["episodes"] == before


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


def test_before_there_are_weights_nobody_is_served_by_random_networks(start):
    service = start(published=False)
    refusal = ray.get(service.actor.begin.remote([0], 0.0), timeout=PATIENCE)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "busy"
    assert refusal.retry_ms > 0
    threading.Timer(1.0, service.publish, (0, VERSION)).start()
    np.testing.assert_allclose(play(service.client(), [0], 3), play(local(), [0], 3), atol=1e-5)


class TestStale:
    """A planner that what the learner published did not reach."""

    NEW = VERSION + 10

    def client(self, service: Service, version: int = NEW, **more) -> Acting:
        """In an episode planned by the old weights, when newer ones have reached the actor."""
        client = service.client(**more)
        play(client, [0], 1)
        assert client.weights_version == VERSION
        client.load(Weights.of(policy(5).networks, version))
        return client

    def test_it_fetches_newer_weights_before_it_plans_for_an_actor_that_needs_them(self, start):
        service = start()
        within, beyond = self.client(service, max_staleness=10), self.client(service, max_staleness=9)
        beyond.load(Weights.of(policy(0).networks, VERSION + 1))  # sent before those that it has
        service.publish(5, self.NEW)
        within.act(observations(1, 1))
        assert within.weights_version == VERSION
        got = beyond.act(observations(1, 1))
        assert beyond.weights_version == self.NEW
        within.act(observations(1, 2))
        assert within.weights_version == self.NEW
        local = Acting(policy(0))
        play(local, [0], 1)
        local.load(Weights.of(policy(5).networks, self.NEW))
        np.testing.assert_allclose(got, local.act(observations(1, 1)), atol=1e-5)  # warm: it is the same episode

    def test_until_it_has_them_the_actor_waits(self, start):
        service = start()
        client = self.client(service, max_staleness=9, timeout_seconds=30.0)
        started = time.monotonic()
        threading.Timer(1.0, service.publish, (5, self.NEW)).start()
        client.act(observations(1, 1))
        assert time.monotonic() - started >= 1.0
        assert client.weights_version == self.NEW
        assert client.lost == 0

    def test_or_acts_greedily_by_its_own(self, start):
        client = self.client(start(), max_staleness=9, when_busy="greedy")
        got = client.act(observations(1, 1))
        np.testing.assert_allclose(got, play(Acting(greedy_beside(policy(5))), [0], 1, first=1)[0], atol=1e-5)
        assert client.weights_version == self.NEW

    def test_what_acted_last_is_not_gone_back_behind_however_old_weights_may_be(self, start):
        service = start()
        client = self.client(service, max_staleness=9, when_busy="greedy")
        client.act(observations(1, 1))  # greedily, by the new ones
        assert client.weights_version == self.NEW
        client.policy.max_staleness = 1000
        client.act(observations(1, 2))
        assert client.weights_version == self.NEW
        service.publish(5, self.NEW)
        before = service.status()["answers"]
        client.act(observations(1, 3))
        assert client.weights_version == self.NEW
        assert service.status()["answers"] == before + 1

    def test_weights_of_a_learner_that_is_no_more_are_too_old_whatever_the_count(self, start):
        service = start()
        again = 2 * 10**9 + 1  # it goes on from a checkpoint before VERSION
        client = self.client(service, again, max_staleness=10**10)
        service.publish(5, again)
        client.act(observations(1, 1))
        assert client.weights_version == again


def kill_soon(pid: int) -> None:
    """So that it is asked first: Ray keeps calls of one that it knows to be dead for the next."""
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()


class TestGone:
    def test_killed_it_is_noticed_the_episode_ends_alone_and_the_next_is_its_own_again(self, start):
        service = start()
        client = service.client(timeout_seconds=30.0)
        play(client, [0], 2)
        pid = service.pid()
        kill_soon(pid)
        alone = [client.act(observations(1, step)) for step in range(2, 5)]
        assert client.lost == 1
        # From a cold start with the actor's own weights.
        np.testing.assert_allclose(alone, play(local(), [0], 3, first=2), atol=1e-5)
        until(lambda: service.pid() != pid, "it is started again")
        np.testing.assert_allclose(play(client, [1], 3), play(local(), [1], 3), atol=1e-5)
        assert client.lost == 1
        assert client.weights_version == VERSION  # fetched from the learner: nothing was published meanwhile
        assert service.status()["answers"] == 3

    def test_stopped_it_is_noticed_in_the_stated_time(self, service):
        client = service.client(timeout_seconds=5.0)
        play(client, [0], 2)
        pid = service.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            client.act(observations(1, 2))
            waited = time.monotonic() - began
            client.act(observations(1, 3))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert 5.0 <= waited < PATIENCE
        assert client.lost == 1  # once: it is not asked again in this episode
        play(client, [1], 3)
        assert client.lost == 1
        assert client.weights_version == VERSION

    def test_who_is_to_wait_waits_and_goes_on_with_the_one_that_comes(self, start):
        service = start()
        client = service.client(when_gone="wait", timeout_seconds=5.0)
        play(client, [0], 2)
        kill_soon(service.pid())
        after = [client.act(observations(1, step)) for step in range(2, 5)]
        assert client.lost >= 1
        np.testing.assert_allclose(after, play(local(), [0], 3, first=2), atol=1e-5)
        assert service.status()["answers"] == 3

    def test_a_batch_that_hangs_ends_the_process_which_leaves_its_stacks(self, start, tmp_path):
        service = start(hang_seconds=3.0)
        client = service.client(timeout_seconds=30.0)
        play(client, [0], 2)
        pid = service.pid()
        service.trap.touch()
        client.act(observations(1, 2))
        assert client.lost == 1
        until(lambda: service.pid() != pid, "it is started again")
        play(client, [1], 3)
        assert client.lost == 1
        (stacks,) = (tmp_path / "hung").glob("planner-0.*.txt")
        assert "in decide" in stacks.read_text()

    def test_episodes_that_it_no_longer_knows_are_begun_anew(self, service):
        client = service.client()
        play(client, [0], 2)
        ray.get(service.actor.end.remote(client.policy._begun), timeout=PATIENCE)
        after = [client.act(observations(1, step)) for step in range(2, 5)]
        np.testing.assert_allclose(after, play(local(), [0], 3, first=2), atol=1e-5)
        assert client.lost == 0

    def test_a_mistake_is_no_failure_of_the_service(self, service):
        client = service.client()
        client.begin([0], 0.0)
        with pytest.raises(ServiceError, match="bad_observation"):
            client.act(observations(1, 0)[:, :2])
        assert client.lost == 0


def test_who_is_refused_by_a_busy_service_asks_again_or_acts_greedily_this_once(start):
    """A queue of one, and two environments that ask at once: the second is refused."""
    service = start(max_queue=1, max_batch=1)
    waiting = service.client(when_busy="wait")
    np.testing.assert_allclose(play(waiting, [0, 1], 4), play(local(), [0, 1], 4), atol=1e-5)
    client = service.client(when_busy="greedy")
    first, second = play(client, [0, 1], 4).swapaxes(0, 1)
    np.testing.assert_allclose(first, play(local(), [0, 1], 4)[:, 0], atol=1e-5)
    greedy = Acting(greedy_beside(policy(0)))
    np.testing.assert_allclose(second, play(greedy, [0, 1], 4)[:, 1], atol=1e-5)
    assert client.lost == 0
