"""The Python client against a real server: every call, and what it raises."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.messages import Answer, Request, ServiceError, ServiceLost
from tests.fakes import Acting
from tests.planner_service.serving.serving import INFO, serving, tiny_policy
from tests.planner_service.serving.test_service import GatedPolicy
from tests.planner_service.serving.test_service import numbers as observation

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def served():
    with serving() as it:
        yield it


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def local(seed, exploration, steps):
    policy = tiny_policy()
    policy = Acting(policy)
    policy.begin([seed], exploration)
    return np.stack([policy.act(observation(step)[None])[0] for step in range(steps)])


def test_an_episode_is_the_local_policys(client):
    episode = client.episode(seed=5, exploration=0.5)
    actions = np.stack([episode.act(observation(step)).action for step in range(6)])
    assert actions.dtype == np.float32
    assert np.allclose(actions, local(5, 0.5, 6), atol=1e-5)


def test_any_numbers_may_be_observations(client):
    want = client.episode(seed=5).act(np.array([1.0, 2.0, 3.0], np.float32)).action
    assert np.array_equal(client.episode(seed=5).act(np.array([1, 2, 3])).action, want)
    assert np.array_equal(client.episode(seed=5).act([1.0, 2.0, 3.0]).action, want)


def test_answers_are_complete(client):
    answer = client.episode(seed=5).act(observation(0))
    assert isinstance(answer, Answer)
    assert (answer.weights_version, answer.iterations, answer.late) == (0, 2, False)
    assert np.isfinite([answer.value, answer.queue_ms, answer.plan_ms]).all()


def test_many_episodes_in_one_call(client, served):
    episodes = client.begin([1, 2, 3])
    batches = served.service._counts["batches"]
    outcomes = client.act([Request(e, 0, {"observations": observation(0)}) for e in [*episodes, 999]])
    for seed, answer in zip([1, 2, 3], outcomes, strict=False):
        assert np.allclose(answer.action, local(seed, 0.0, 1)[0], atol=1e-5)
    assert outcomes[3].code == "unknown_episode"
    assert served.service._counts["batches"] == batches + 1
    client.end(episodes)
    assert client.act([Request(episodes[0], 1, {"observations": observation(0)})])[0].code == "unknown_episode"


def test_info_and_health(client):
    assert client.info() == {**INFO, "weights_version": 0}
    client.episode(seed=0).act(observation(0))
    health = client.health()
    assert health["episodes"] >= 1
    assert health["answers"] >= 1
    assert set(health) == {
        "weights_version",
        "episodes",
        "queued",
        "answers",
        "batches",
        "refusals",
        "plan_ms",
    }


def test_refusals_are_errors_with_their_code(client):
    with pytest.raises(ServiceError, match=r"bad_observation: observations: got \[4\] numbers, want \[3\]") as error:
        client.episode(seed=0).act(np.zeros(4))
    assert error.value.refusal.code == "bad_observation"
    with pytest.raises(ServiceError, match="bad_message: exploration"):
        client.begin([0], exploration=2.0)
    episode = client.episode(seed=0)
    episode.act(observation(0))  # the connection goes on


def test_ended_episodes_are_released(client, served):
    episode = client.episode(seed=0)
    before = client.health()["episodes"]
    episode.end()
    assert client.health()["episodes"] == before - 1


def test_a_busy_service_is_asked_again():
    policy = GatedPolicy()
    with serving(policy, service={"max_batch": 1, "max_queue": 1, "max_wait_ms": 0}) as it:
        clients = [it.client() for _ in range(4)]
        answers = []

        def drive(client, seed):
            answers.append(client.episode(seed).act(observation(0)))

        threads = [threading.Thread(target=drive, args=(c, i)) for i, c in enumerate(clients)]
        for thread in threads:
            thread.start()
        while it.service._refused["busy"] < 2:
            assert any(thread.is_alive() for thread in threads)
        policy.gate.set()
        for thread in threads:
            thread.join(30)
        assert len(answers) == 4
        for client in clients:
            client.close()


def test_no_service_is_lost(served):
    with serving() as it:
        client = it.client()
        episode = client.episode(0)
    with pytest.raises(ServiceLost, match=r"planner service at 127\.0\.0\.1"):
        episode.act(observation(0))
    with pytest.raises(ServiceLost, match=r"planner service at 127\.0\.0\.1"):
        Client(port=it.port)


def test_a_service_that_does_not_answer_in_time_is_lost():
    policy = GatedPolicy()
    with serving(policy) as it:
        with Client(port=it.port, timeout_s=30) as client:
            episode = client.episode(0)
            client._socket.settimeout(0.2)  # not before: the greeting may take longer on a busy machine
            with pytest.raises(ServiceLost, match="act: timed out"):
                episode.act(observation(0))
            with pytest.raises(ServiceLost):  # not the answer to the question before
                client.info()
        policy.gate.set()


def test_needs_neither_torch_nor_ray():
    """What a robot has to install."""
    code = "import sys, qttdm.planner_service.serving.client as c; print(sorted({'torch', 'ray'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"
