"""`qttdm cluster` on real clusters: what it refuses there, and a run's life as seen from several shells."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from qttdm.common.metrics.lines import read_metrics
from qttdm.deploy.cli.main import main
from qttdm.deploy.cluster import preflight
from qttdm.deploy.cluster.cluster_run import old_seeds
from qttdm.deploy.configs.cluster_config import NAMESPACE
from tests.remote.live import PATIENCE, SMALL, check_books, nothing_is_left, objects_stored, until, workers

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
DEBUG = ["train", "--preset=debug", "--set=cluster.metrics_port=null"]
"""ends by itself after 10 episodes"""
ENDLESS = ["train", "--preset=debug", *(f"--set={item}" for item in SMALL)]


@pytest.fixture
def here(cluster, tmp_path, monkeypatch) -> Path:
    """An empty working directory of the process of the tests, which is connected to the session's cluster."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_main(capsys, *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `qttdm cluster WORDS`, in this process."""
    status = main(["cluster", *words])
    out, err = capsys.readouterr()
    return status, out, err


def one_line(status: int | None, out: str, err: str) -> str:
    """What a command said that refused."""
    assert (status, out) == (2, ""), (out, err)
    assert re.fullmatch(r"qttdm: .*\n", err), err
    return err


def shell(folder: Path, address: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    """`qttdm cluster WORDS` as a user types it in `folder`; without a token unless the environment has it."""
    variables = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "qttdm.deploy.cli.main", "cluster", *words],
        cwd=folder,
        env=os.environ | variables | {"PYTHONUNBUFFERED": "1"} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, err = child.communicate(timeout=PATIENCE)
    return child.returncode, out, err


class TestRoom:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--actors=100"], ["a seed needs 50.5 CPU, the whole cluster has 8", "--actors"]),
            (["--gpus-per-seed=1"], ["a seed needs 1 GPU, the whole cluster has 0", "--gpus-per-seed"]),
        ],
    )
    def test_too_much_for_ever_names_the_resource(self, here, capsys, words, said):
        line = one_line(*run_main(capsys, *DEBUG, *words))
        for word in said:
            assert word in line
        assert list(here.iterdir()) == []

    def test_too_much_for_now_is_queued_and_all_seeds_leave_what_one_machine_leaves(self, cluster, here, capsys):
        objects = objects_stored()[0]
        sets = ["--set=cluster.actor_cpus=5", "--set=cluster.timeout_seconds=1"]
        status, out, err = run_main(capsys, *DEBUG, "--name=walk", "--seeds=0,1", *sets)
        assert (status, err) == (0, "")
        first, room, *lines = out.splitlines()
        assert first == f"qt-tdm on dmc/cartpole-swingup, seeds 0, 1: {here}/runs/walk"
        assert room == "the cluster has room for 1 of 2 seeds now; the others are queued"
        states = [(int(m[1]), m[2]) for line in lines if (m := re.match(r"seed (\d) \| state (\w+)", line))]
        assert sorted({seed for seed, state in states if state == "queued"})[-1] == 1
        assert {seed for seed, state in states if state == "running"} == {0, 1}
        assert states.index((0, "finished")) < states.index((1, "running"))
        assert re.search(r"^dmc/cartpole-swingup +qt-tdm\S* +2 +1,6\d\d +episode_return .* to ", out, re.MULTILINE)
        assert f"curve: {here}/runs/walk/curve.png" in out
        assert (here / "runs" / "walk" / "curve.png").read_bytes().startswith(b"\x89PNG")
        for seed in old_seeds(here / "runs" / "walk"):
            assert seed.state == "finished"
            path = seed.run_dir.path
            assert {"config.yaml", "metrics.jsonl", "checkpoints", "curve.png"} <= {
                file.name for file in path.iterdir()
            }
            assert (path / "video.mp4").exists() is ("no video" not in out)
            assert {line["kind"] for line in read_metrics(seed.run_dir.metrics_path)} == {"train", "update", "eval"}
            assert check_books(seed).meta["counters"]["env_steps"] >= 1600
        missed = r"driver: has waited \d+ s for a place: a seed reserves 0\.\d+ CPU; 5 CPU; the nodes have free"
        assert len(re.findall(missed, (here / "runs/walk/seed-1/events.log").read_text())) > 1  # again and again
        nothing_is_left(cluster, objects)


def test_a_node_that_does_not_see_the_runs(here, capsys):
    """Under this path every process sees its own working directory: the nodes' are others than this one's."""
    line = one_line(*run_main(capsys, *DEBUG, "--name=walk", "--runs-dir=/proc/self/cwd/runs"))
    assert "does not see /proc/self/cwd/runs/walk" in line
    assert "storage that all nodes share" in line
    assert not (here / "runs" / "walk").exists()


def test_detaching_without_a_job_service(here, capsys):
    status, _, err = run_main(capsys, *DEBUG, "--name=walk", "--detach")
    assert (status, err.count("\n")) == (2, 1)
    assert "--include-dashboard=true" in err
    assert not (here / "runs" / "walk").exists()


class TestOtherVersions:
    """A second node that has something else installed."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """Goes first in that node's Python path."""
        (tmp_path / "other").mkdir()
        return tmp_path / "other"

    def line(self, cluster, tmp_path, other) -> str:
        node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{other}:{ROOT}"})
        try:
            (tmp_path / "here").mkdir()
            said = one_line(*ended(shell(tmp_path / "here", cluster.address, *DEBUG, "--name=walk")))
        finally:
            cluster.remove_node(node)
        assert not (tmp_path / "here" / "runs" / "walk").exists()
        return said

    def test_another_qttdm(self, cluster, tmp_path, folder):
        shutil.copytree(ROOT / "qttdm", folder / "qttdm")
        with (folder / "qttdm" / "learner" / "losses.py").open("a") as file:
            file.write("# edited\n")
        line = self.line(cluster, tmp_path, folder)
        assert re.search(r"has qttdm 0\.1\.0 \(sources \w{8}\), this one 0\.1\.0 \(sources \w{8}\)", line)
        assert "install the same on every node" in line

    def test_another_torch(self, cluster, tmp_path, folder):
        (folder / "torch-1.0.0.dist-info").mkdir()
        (folder / "torch-1.0.0.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n"
        )
        line = self.line(cluster, tmp_path, folder)
        assert re.search(r"has torch 1\.0\.0, this one \d+\.\d+\.\d+; install the same on every node", line)

    def test_one_that_cannot_be_asked(self, cluster, tmp_path, folder):
        (folder / "qttdm" / "deploy" / "cluster").mkdir(parents=True)
        for name in ("__init__.py", "deploy/__init__.py", "deploy/cluster/__init__.py", "deploy/cluster/preflight.py"):
            (folder / "qttdm" / name).touch()
        line = self.line(cluster, tmp_path, folder)
        assert "cannot run qttdm; install it there (pip install -e .): " in line


class Bystander:
    """Someone else's actor."""

    def greet(self) -> str:
        return "hello"


@pytest.fixture
def others(cluster) -> Iterator[Any]:
    """An actor and a placement group on the cluster that are no run's."""
    group = placement_group([{"CPU": 1}])
    actor = ray.remote(num_cpus=0.5)(Bystander).options(name="others/control", namespace="others").remote()
    ray.get([group.ready(), actor.greet.remote()], timeout=PATIENCE)
    yield actor
    ray.kill(actor)
    remove_placement_group(group)


OWN_TASK = """
from gymnasium.envs.classic_control import PendulumEnv

from wind_parts.gusts import GUST

class Wind(PendulumEnv):
    gust = GUST
"""


def test_a_run_seen_from_other_shells(cluster, here, others, capsys, monkeypatch):
    """Started in one; looked at, refused a second time and stopped from another, though the request is lost once.

    Its task is in the driver's folder alone: as soon as the driver has sent it to the other node, it is moved away.
    """
    groups = {group["name"] for group in placement_group_table().values() if group["state"] == "CREATED"}
    run = here / "runs" / "walk"

    def steps() -> int:
        status, out, err = run_main(capsys, "status", "walk")
        assert (status, err) == (0, "")
        assert out.startswith(f"walk: wind:Wind, {run}\nseed ")
        return int(re.search(r"^ *0 +\w+ +([\d,]+)", out, re.MULTILINE)[1].replace(",", ""))

    def resuming() -> str:
        """The line that `resume` is refused with, below the one that says which code it imports."""
        status, out, err = run_main(capsys, "resume", "walk")
        *said, line = err.splitlines()
        assert {words.partition(": ")[2] for words in said} == {"imports the code that it names: wind:Wind"}
        return one_line(status, out, line + "\n")

    def goes(child: subprocess.Popen[str]) -> bool:
        assert child.poll() is None, ended(child)
        return "walk/control" in {a["name"] for a in ray.util.list_named_actors(all_namespaces=True)}

    assert run_main(capsys, "status") == (0, "no run is on this cluster\n", "")
    line = one_line(*run_main(capsys, "status", "walk"))
    assert "walk: no such run is on the cluster now; there: none" in line
    assert "walk: no such run" in one_line(*run_main(capsys, "stop", "walk"))

    monkeypatch.setattr(sys, "path", [*sys.path])
    (here / "wind.py").write_text(OWN_TASK)
    (here / "wind_parts").mkdir()
    (here / "wind_parts" / "gusts.py").write_text("GUST = 1")
    other = cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=80 * 2**20)
    task = ["--task=wind:Wind", "--gpus-per-seed=1"]  # the head has no GPU
    training = shell(here, cluster.address, *ENDLESS, *task, "--name=walk", "--seeds=0")
    until(lambda: run.exists() or training.poll() is not None, "it has joined the cluster")
    own = ("wind.py", "wind_parts")
    (here / "away").mkdir()
    for name in own:
        (here / name).rename(here / "away" / name)
    until(lambda: goes(training), "it is on the cluster")
    ray.get(ray.get_actor("walk/control", NAMESPACE).__ray_ready__.remote(), timeout=PATIENCE)
    until(lambda: steps() > 800, "it trains")
    assert workers(cluster, [other])
    for name in own:  # `resume` looks at the task before it looks at the cluster
        (here / "away" / name).rename(here / name)
    assert re.search(r"^ *0 +running ", run_main(capsys, "status")[1], re.MULTILINE)
    line = one_line(*run_main(capsys, *ENDLESS, "--name=walk", "--runs-dir=elsewhere"))
    assert "walk: is running on the cluster; look at it with: qttdm cluster status walk" in line
    assert "walk: is running on the cluster" in resuming()
    assert "tango: no such run is on the cluster now; there: walk" in one_line(*run_main(capsys, "stop", "tango"))

    ask, lost = preflight.ask, []

    def ask_and_lose(name: str, method: str) -> Any:
        answer = ask(name, method)
        if not lost:
            lost.append(answer)
            ray.kill(ray.get_actor(f"{name}/control", NAMESPACE), no_restart=False)
        return answer

    before = steps()
    monkeypatch.setattr(preflight, "ask", ask_and_lose)
    assert run_main(capsys, "stop", "walk") == (
        0,
        "stopping walk\nstopped; go on with: qttdm cluster resume walk\n",
        "",
    )
    assert lost == [None]
    status, out, err = ended(training)
    assert (status, err) == (0, "")
    assert "saved; go on with: qttdm cluster resume walk" in out
    assert [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)] == ["others/control"]
    assert ray.get(others.greet.remote(), timeout=PATIENCE) == "hello"
    assert groups == {group["name"] for group in placement_group_table().values() if group["state"] == "CREATED"}
    [seed] = old_seeds(run)
    assert check_books(seed).meta["counters"]["env_steps"] >= before

    config = seed.run_dir.config_path
    config.write_text(config.read_text().replace("shards: 2", "shards: 1"))
    line = resuming()
    assert f"{config}: got cluster.shards=1, but its replay is spread over 2" in line
    cluster.remove_node(other)


@contextmanager
def head(folder: Path, **environment: str) -> Iterator[str]:
    """The address of another cluster, started as a user does, in its own folder."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        port, dashboard, agent = (s.getsockname()[1] for s in sockets)
    words = [f"--port={port}", "--num-cpus=4", "--object-store-memory=200000000", f"--temp-dir={folder}"]
    words += ["--include-dashboard=true", f"--dashboard-port={dashboard}", "--disable-usage-stats"]
    words.append(f"--dashboard-agent-listen-port={agent}")  # two Rays on a machine cannot share the default
    folder.mkdir()
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def started() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"ray start --address='([\d.]+:\d+)'", log.read_text())

    try:
        yield until(started, "the head has started")[1]
    finally:
        process.terminate()  # ends what it started, too
        process.wait(PATIENCE)


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


@pytest.fixture(scope="module")
def guarded(cluster) -> Iterator[str]:
    """The address of another cluster, one with a token."""
    with head(Path(os.environ["RAY_TMPDIR"]) / "guarded", **TOKEN) as address:
        yield address


@pytest.mark.parametrize(
    "environment",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}],
    ids=["missing", "wrong"],
)
def test_the_clusters_token(guarded, tmp_path, environment):
    line = one_line(*ended(shell(tmp_path, guarded, *DEBUG, "--name=walk", **environment)))
    assert f"the Ray cluster at RAY_ADDRESS={guarded} refuses: its token is missing or wrong here" in line
    assert "RAY_AUTH_TOKEN" in line
    assert list(tmp_path.iterdir()) == []


def test_detached_it_goes_on_without_the_client(guarded, tmp_path):
    def qttdm(*words: str) -> str:
        status, out, err = ended(shell(tmp_path, guarded, *words, **TOKEN))
        assert status == 0, (out, err)
        return out

    out = qttdm(*ENDLESS, "--set=cluster={actors: 1, shards: 1}", "--name=walk", "--seeds=0", "--detach")
    assert re.search(r"^detached as Ray job walk-\d{8}-\d{6}$", out, re.MULTILINE)
    assert "stop: qttdm cluster stop walk" in out
    metrics = tmp_path / "runs" / "walk" / "seed-0" / "metrics.jsonl"
    until(lambda: metrics.exists() and len(read_metrics(metrics)) > 3, "it trains")
    assert re.search(r"^ *0 +running ", qttdm("status"), re.MULTILINE)
    assert "stopped; go on with" in qttdm("stop", "walk")
    until(lambda: "driver: stopped" in (metrics.parent / "events.log").read_text(), "it has said so")
    [seed] = old_seeds(tmp_path / "runs" / "walk")
    check_books(seed)
