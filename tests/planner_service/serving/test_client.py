"""The Python client against a real server: every call, and what it raises."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qttdm.common.contracts import ArraySpec, DataSpec, Decisions, vector_data
from qttdm.planner_service.planners.beam_search import BeamSearch, BeamSearchConfig
from qttdm.planner_service.policies.planning import PlanningPolicy
from qttdm.planner_service.serving import client as client_module
from qttdm.planner_service.serving.client import Client, DisconnectedError, RefusedError
from qttdm.planner_service.serving.server import PORT, PROTOCOL
from tests.fakes import Acting, tiny_sequence_model
from tests.planner_service.serving.serving import INFO, serving, tiny_policy
from tests.planner_service.serving.test_service import GatedPolicy
from tests.planner_service.serving.test_service import numbers as observation


@pytest.fixture(scope="module")
def served():
    with serving() as it:
        yield it


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def local(seed, exploration, steps):
    policy = Acting(tiny_policy())
    policy.begin([seed], exploration)
    return np.stack([policy.act(observation(step)[None])[0] for step in range(steps)])


def test_an_episode_is_the_local_policys(client):
    episode = client.episode(seed=5, exploration=0.5)
    actions = np.stack([episode.act(observation(step))["action"] for step in range(6)])
    assert actions.dtype == np.float32
    assert np.allclose(actions, local(5, 0.5, 6), atol=1e-5)


def test_any_numbers_may_be_observations(client):
    want = client.episode(seed=5).act({"observations": np.array([1.0, 2.0, 3.0], np.float32)})["action"]
    assert np.array_equal(client.episode(seed=5).act(np.array([1, 2, 3]))["action"], want)
    assert np.array_equal(client.episode(seed=5).act([1.0, 2.0, 3.0])["action"], want)


def test_answers_are_complete(client):
    answer = client.episode(seed=5).act(observation(0), deadline_ms=5000.0, anytime=True)
    assert (answer["weights_version"], answer["iterations"], answer["late"]) == (0, 2, False)
    assert np.isfinite([answer["value"], answer["queue_ms"], answer["plan_ms"]]).all()


def test_many_episodes_in_one_call(client, served):
    episodes = client.begin([1, 2, 3])
    batches = served.service._counts["batches"]
    asked = [{"episode": e, "step": 0, "observations": observation(0)} for e in [*episodes, 999]]
    outcomes = client.act(asked)
    for seed, answer in zip([1, 2, 3], outcomes, strict=False):
        assert np.allclose(answer["action"], local(seed, 0.0, 1)[0], atol=1e-5)
    assert outcomes[3]["error"]["code"] == "unknown_episode"
    assert served.service._counts["batches"] == batches + 1
    client.call("end", episodes=episodes)
    assert client.act(asked[:1])[0]["error"]["code"] == "unknown_episode"


def test_info_and_health(client):
    data = {"observations": {"observations": {"shape": [3], "dtype": "float32"}}}
    data |= {"action": {"shape": [2], "dtype": "float32"}, "choices": None}
    assert client.call("info") == {**INFO, **data, "weights_version": 0}
    client.episode(seed=0).act(observation(0))
    health = client.call("health")
    assert min(health["episodes"], health["answers"]) >= 1
    want = {"weights_version", "episodes", "queued", "answers", "batches", "refusals", "plan_ms"}
    assert set(health) == want


def test_refusals_are_errors_with_their_code(client):
    with pytest.raises(RefusedError, match=r"bad_observation: observations: got \[4\] numbers, want \[3\]") as error:
        client.episode(seed=0).act(np.zeros(4))
    assert error.value.code == "bad_observation"
    with pytest.raises(RefusedError, match="bad_message: exploration"):
        client.begin([0], exploration=2.0)
    episode = client.episode(seed=0)
    with pytest.raises(RefusedError, match="bad_observation: got 'speed', want only observations"):
        episode.act({"observations": observation(0), "speed": [1.0]})
    episode.act(observation(0))  # the connection goes on


def test_ended_episodes_are_released(client, served):
    episode = client.episode(seed=0)
    before = client.call("health")["episodes"]
    episode.end()
    assert client.call("health")["episodes"] == before - 1


class Camera:
    """A policy of several observations and discrete actions: it remembers what it was shown."""

    device, weights_version, shown = "cpu", 0, None

    def start(self, seed, exploration, goal=None):
        return seed

    def decide(self, episodes, observations, deadline=None):
        self.shown = {name: array[0] for name, array in observations.items()}
        return Decisions(np.full((len(episodes), 1), 3), np.zeros(len(episodes), np.float32))


def test_observations_by_name_of_any_declared_kind():
    specs = {"pixels": ArraySpec((4, 5, 3), "uint8"), "state": ArraySpec((2,), "float64"), "speed": ArraySpec(())}
    data = DataSpec(specs, ArraySpec((1,), "int64"), window=2, discount=None, choices=6)
    rng, policy = np.random.default_rng(0), Camera()
    shown = {"pixels": rng.integers(256, size=(4, 5, 3), dtype=np.uint8), "state": rng.normal(size=2), "speed": 0.5}
    with serving(policy, data=data) as it, it.client() as client:
        raw = it.raw()
        (number,) = raw.call(as_text=True, call="begin", seeds=[0])["episodes"]
        lists = {name: np.asarray(value).tolist() for name, value in shown.items()}
        request = {"episode": number, "step": 0, "observations": lists}
        for ask in (
            lambda: client.episode(0).act(shown),
            lambda: raw.call(as_text=True, call="act", requests=[request])["results"][0],
        ):
            assert list(ask()["action"]) == [3]
            for name, spec in specs.items():
                assert policy.shown[name].dtype == spec.dtype
                assert np.array_equal(policy.shown[name], np.asarray(shown[name], spec.dtype)), name
        missing = {name: shown[name] for name in ("pixels", "state")}
        with pytest.raises(RefusedError, match="bad_observation: there is no 'speed'; want pixels, state, speed"):
            client.episode(0).act(missing)
        turned = {**shown, "pixels": shown["pixels"].transpose(2, 0, 1)}
        with pytest.raises(RefusedError, match=r"pixels: got \[3, 4, 5\] numbers, want \[4, 5, 3\]"):
            client.episode(0).act(turned)


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


def test_no_service_is_lost():
    with serving() as it:
        client = it.client()
        episode = client.episode(0)
    with pytest.raises(DisconnectedError, match=r"ws://127\.0\.0\.1:\d+: act: .*the service is being stopped"):
        episode.act(observation(0))
    with pytest.raises(DisconnectedError, match=r"ws://127\.0\.0\.1:\d+: "):
        Client(port=it.port)


def test_a_service_that_does_not_answer_in_time_is_lost():
    policy = GatedPolicy()
    with serving(policy) as it:
        with it.client() as client:
            episode = client.episode(0)
            client.timeout_s = 0.2
            with pytest.raises(DisconnectedError, match="act: timed out"):
                episode.act(observation(0))
            with pytest.raises(DisconnectedError):  # not the answer to the question before
                client.call("info")
        policy.gate.set()


def test_the_file_alone_is_a_client(client, served, tmp_path):
    """What a robot has to install: a copy of it, msgpack, numpy, websockets. Nothing of ours, no pydantic, no torch."""
    shutil.copy(client_module.__file__, tmp_path / "robot.py")
    code = (
        "import sys, robot; c = robot.Client(port=int(sys.argv[1])); c.episode(0).act([0, 0, 0]); c.close();"
        "print(sorted({'qttdm', 'torch', 'ray', 'aiohttp', 'pydantic'} & sys.modules.keys()))"
    )
    ran = subprocess.check_output([sys.executable, "-c", code, str(served.port)], cwd=tmp_path, text=True)
    assert ran == "[]\n"
    source = Path(client_module.__file__).read_text()
    assert f'"{PROTOCOL}"' in source
    assert f"port: int = {PORT}" in source


def test_each_client_has_its_own_goal():
    """Served by one model: what it is to reach changes what it does; who takes no goals says so."""
    model = tiny_sequence_model(4, bins=32)
    planner = BeamSearch(BeamSearchConfig(mode="imitate", horizon=2, context=1, beams=8), 0.9, model)
    data = vector_data(3, 2, 4, 0.9)
    policy = PlanningPolicy(planner, nn.ModuleDict({"sequence": model}), data, torch.device("cpu"))
    seen = np.array([0.1, 0.2, 0.3], np.float32)

    def acted(client, goal):
        (answer,) = client.act([{"episode": client.begin([7], goal=goal)[0], "step": 0, "observations": seen}])
        return answer["action"].tolist()

    goals = [None, [0.9, 0.9, 0.9], [-0.9, 0.9, -0.9]]
    with serving(policy, data=data) as served, served.client() as one, served.client() as other:
        told = [[acted(client, goal) for client in (one, other)] for goal in goals]
        assert all(mine == theirs for mine, theirs in told)
        assert len({str(mine) for mine, _ in told}) > 1
        for wrong in ([0.0], [0.0] * 4):
            with pytest.raises(RefusedError, match=r"bad_message.*want 3 finite numbers"):
                one.begin([7], goal=wrong)
    with (
        serving() as served,
        served.client() as client,
        pytest.raises(RefusedError, match="this planner looks for return"),
    ):
        client.begin([7], goal=[0.0, 0.0, 0.0])
