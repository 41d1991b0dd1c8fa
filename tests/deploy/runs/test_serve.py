"""`qttdm serve`, as a user starts it: what it refuses, what it serves, how it follows a run, how it ends."""

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qttdm.common import checkpoint
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.serve import follow
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.planner_service.serving.client import Client, DisconnectedError, RefusedError
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from tests.deploy.listening import listening
from tests.fakes import Acting, randomise, tiny_config

ROOT = Path(__file__).parents[3]
PENDULUM = "env={action_repeat: 20, episode_steps: 200}"  # 10 decisions


def pendulum_run(folder, agent="qt-tdm"):
    """A run with random weights and one checkpoint, of a task that other processes know too."""
    run = new_run(tiny_config(PENDULUM, task="gym/Pendulum-v1", agent=agent), RunDir.create(folder))
    save(run, updates=1)
    return run


def save(run, updates):
    """A checkpoint of other weights, as the cluster's are: without a replay."""
    randomise(run.learner.networks)
    run.learner.updates = updates
    run.loop.store.save(10 * updates, run.learner.state(), {"counters": {}}, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return pendulum_run(tmp_path_factory.mktemp("runs") / "run").run_dir.path


@contextmanager
def broken(monkeypatch, name):
    """Checkpoints that are saved meanwhile have nothing in the file of that name, from the moment they are there."""
    write = checkpoint.write_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", lambda path, data: write(path, b"" if path.name == name else data))
        yield


@contextmanager
def serving(*arguments, **environment):
    """`qttdm serve` in a process of its own, on a port of its own; killed at the end if it still runs."""
    command = [sys.executable, "-m", "qttdm.deploy.cli.main", "serve", *map(str, arguments), "--port", "0"]
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    child = subprocess.Popen(command, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        child.greeting = child.stdout.readline()
        child.port = int(re.search(r" port (\d+)$", child.greeting).group(1))
        yield child
    finally:
        child.kill()
        child.wait()


def end(child):
    """SIGTERM; returns the seconds it took, and what was printed since."""
    started = time.monotonic()
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    return time.monotonic() - started, out, err


def observation(step):
    return np.random.default_rng(step).standard_normal(3).astype(np.float32)


def local_actions(path, seed, steps):
    """What the run's own policy does."""
    policy = TrainedAgent(path).policy
    policy = Acting(policy)
    policy.begin([seed], 0.0)
    return np.stack([policy.act(observation(step)[None])[0] for step in steps])


@pytest.mark.parametrize("agent", ["qt-tdm", "qt"])
def test_serves_each_agent_as_it_was_trained_and_ends_when_told_to(tmp_path, agent):
    run = pendulum_run(tmp_path / "run", agent)
    with serving(run.run_dir.path) as child:
        assert child.greeting == f"{agent} on gym/Pendulum-v1, weights 1: 127.0.0.1 port {child.port}\n"
        assert listening(child.pid) == {("127.0.0.1", child.port)}
        with Client(port=child.port) as client:
            info = client.call("info")
            assert (info["task"], info["agent"], info["weights_version"]) == ("gym/Pendulum-v1", agent, 1)
            assert (info["action"]["shape"], info["action_repeat"], info["episode_steps"]) == ([1], 20, 200)
            assert info["observations"] == {"observations": {"shape": [3], "dtype": "float32"}}
            assert info["action_bounds"] == {"low": [-2.0], "high": [2.0]}
            assert (info["decision_seconds"], info["observation_parts"]) == (1.0, [])
            episode = client.episode(seed=3)
            got = np.stack([episode.act(observation(step))["action"] for step in range(4)])
            seconds, out, err = end(child)
            assert (child.returncode, out, err) == (0, "", "")
            assert seconds < 20
            with pytest.raises(DisconnectedError):
                client.call("info")
    assert np.allclose(got, 2 * local_actions(run.run_dir.path, 3, range(4)), atol=1e-5)  # torques, up to 2


def test_one_checkpoint_by_name_whose_metrics_name_the_run_of_a_clusters_seed(tmp_path):
    run = pendulum_run(tmp_path / "walk" / "seed-0")
    run.run_dir.events_path.touch()
    first = run.loop.store.newest()
    save(run, updates=2)
    with serving(first) as child, Client(port=child.port) as client:
        assert client.call("info")["weights_version"] == 1
        text = urllib.request.urlopen(f"http://127.0.0.1:{child.port}/metrics", timeout=30).read().decode()
    assert set(re.findall(r'[{,]run="([^"]*)"', text)) == {"walk"}


def test_follows_a_run_that_is_training_without_dropping_a_connection(tmp_path, monkeypatch):
    run = pendulum_run(tmp_path / "run")
    with serving(run.run_dir.path, "--watch", "--set", "watch_every_s=0.05") as child:
        with Client(port=child.port) as client:
            episode, step, seen = client.episode(seed=3), 0, []
            for updates in (2, 3, 4):
                if updates == 3:  # passed over
                    with broken(monkeypatch, "tensors.safetensors"):
                        save(run, updates)
                    continue
                save(run, updates)
                deadline = time.monotonic() + 30
                while not seen or seen[-1] != updates:
                    assert time.monotonic() < deadline, seen
                    seen.append(episode.act(observation(step))["weights_version"])
                    step += 1
            assert sorted(seen) == seen
            assert set(seen) <= {1, 2, 4}
            fresh = client.episode(seed=5)
            got = np.stack([fresh.act(observation(step))["action"] for step in range(3)])
        _, out, err = end(child)
    assert (out, err) == ("weights 2\nweights 4\n", "")
    assert np.allclose(got, 2 * local_actions(run.run_dir.path, 5, range(3)), atol=1e-5)


def test_newer_weights_that_cannot_be_used_are_reported_and_the_old_ones_stay(tmp_path, monkeypatch):
    run = pendulum_run(tmp_path / "run")
    with serving(run.run_dir.path, "--watch", "--set", "watch_every_s=0.05") as child:
        (run.loop.store.newest() / "SHA256SUMS").write_text("")  # there is none to fall back to
        with broken(monkeypatch, "SHA256SUMS"):
            save(run, updates=2)
        line = child.stderr.readline()
        if line == "":
            pytest.fail("the service has gone")
        assert line.startswith("kept the weights in use: ")
        with Client(port=child.port) as client:
            assert client.call("info")["weights_version"] == 1
            client.episode(seed=0).act(observation(0))


def test_a_disk_that_fails_for_a_moment_does_not_end_the_following(tmp_path, monkeypatch, capsys):
    run = pendulum_run(tmp_path / "run")
    agent = TrainedAgent(run.run_dir.path)
    save(run, updates=2)
    newest, failures = agent.store.newest, [OSError(errno.ESTALE, "Stale file handle")]
    monkeypatch.setattr(agent.store, "newest", lambda: newest() if not failures else throw(failures.pop()))

    async def follow_to(version):
        service = PlannerService(ServiceConfig(), agent.policy, agent.data)
        following = asyncio.create_task(follow(agent, service, 0.01))
        async with asyncio.timeout(30):
            while agent.policy.weights_version != version and not following.done():
                await asyncio.sleep(0.01)
        assert not following.done()
        following.cancel()

    asyncio.run(follow_to(2))
    assert "kept the weights in use: [Errno 116] Stale file handle\n" in capsys.readouterr().err


def throw(error):
    raise error


def test_a_token_opens_it_and_is_never_printed(trained, tmp_path):
    file = tmp_path / "token"
    file.write_text("open.sesame\n")
    for arguments, environment in ((["--token-file", file], {}), ([], {"QTTDM_TOKEN": "open.sesame"})):
        said = ["--host", "0.0.0.0", "--set", "server.plain_text=true"]
        with serving(trained, *said, *arguments, **environment) as child:
            assert b"sesame" not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
            text = urllib.request.Request(f"http://127.0.0.1:{child.port}/metrics")
            text.add_header("Authorization", "Bearer open.sesame")
            assert b"sesame" not in urllib.request.urlopen(text, timeout=30).read()
            with pytest.raises(RefusedError, match="unauthorised"):
                Client(port=child.port, token="open")
            with Client(port=child.port, token="open.sesame") as client:
                client.episode(seed=0).act(observation(0))
            _, out, err = end(child)
        assert "sesame" not in child.greeting + out + err
    assert not any(b"sesame" in path.read_bytes() for path in trained.rglob("*") if path.is_file())


def test_told_to_stop_in_the_middle_of_a_long_plan_it_exits_in_the_stated_time(trained):
    long = [
        "qt-tdm.planner.samples=5000",
        "qt-tdm.planner.iterations=600",
        "server.stop_timeout_s=0.2",
        "service.max_wait_ms=0",
    ]
    settings = [part for item in long for part in ("--set", item)]
    with serving(trained, *settings) as child, Client(port=child.port) as client:
        outcome, episode = [], client.episode(0)

        def ask():
            try:
                outcome.append(episode.act(observation(0)))
            except DisconnectedError as error:
                outcome.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        seconds, _, err = end(child)
        asking.join()
    assert isinstance(outcome[0], DisconnectedError)
    assert 0.2 <= seconds < 20
    assert err == "gave up on unanswered calls after 0.2 s\n"
    assert child.returncode == 1


class TestMistakes:
    """Exit status 2 and one line that helps."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--host", "0.0.0.0"], ["0.0.0.0", "--token-file"]),
            (["--host", "0.0.0.0", "--token-file", "nothing"], ["nothing", "cannot read the token"]),
            (["--token-file", "empty"], ["empty: want a token of one or more letters"]),
            (["--token-file", "spaced"], ["spaced: want a token", "letters, digits and _ . ~ + - only"]),
            (["--tls-cert", "empty"], ["--tls-cert and --tls-key belong together"]),
            (["--tls-cert", "empty", "--tls-key", "empty"], ["empty, empty: cannot be used for TLS"]),
            (["--port", "70000"], ["server.port", "70000", "65535"]),
            (["--port", "x"], ["--port", "'x'"]),
            (["--host", "192.0.2.1", "--token-file", "token"], ["192.0.2.1", "unencrypted", "plain_text"]),
            (
                ["--host", "192.0.2.1", "--token-file", "token", "--set", "server.plain_text=true"],
                ["cannot listen on 192.0.2.1"],
            ),
            (["--set", "server.max_conections=5"], ["server.max_conections", "max_connections"]),
            (["--set", "service.max_batch=0"], ["service.max_batch", "0", "> 0"]),
            (["--set", "service.max_batch=5000"], ["max_queue=1024 is less than max_batch=5000"]),
            (["--set", "qt-tdm.planner.horizn=5"], ["planner.horizn", "horizon"]),
        ],
    )
    def test_options(self, trained, tmp_path, monkeypatch, capsys, arguments, words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("QTTDM_TOKEN", raising=False)
        Path("empty").write_text(" \n")
        Path("token").write_text("sesame")
        Path("spaced").write_text("open sesame")
        assert_one_line(capsys, words, ["serve", str(trained), *arguments])

    def test_runs(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert_one_line(capsys, ["nowhere: not a run directory"], ["serve", "nowhere"])
        (checkpoint,) = (trained / "checkpoints").iterdir()
        assert_one_line(capsys, [f"{checkpoint}: --watch follows a run"], ["serve", str(checkpoint), "--watch"])


def assert_one_line(capsys, words, arguments):
    try:
        status = main(arguments)
    except SystemExit as exit_:  # argparse
        status = exit_.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
