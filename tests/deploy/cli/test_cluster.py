"""`qttdm cluster`: what it refuses before it looks for a cluster, and when there is none. With one: tests/remote/."""

import os
import re
import shlex
import socket
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import ray

from qttdm.common.config import dump_config, load_config
from qttdm.deploy.cli.cluster import SeedSettings
from qttdm.deploy.cli.main import app, main
from qttdm.deploy.cluster.cluster_run import new_seeds
from qttdm.deploy.configs.run_config import RunConfig

ROOT = Path(__file__).parents[3]
DEBUG = ["train", "--preset", "debug"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and an address at which nothing is: none of these tests may get as far as that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as s:  # bound, and not listening
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{s.getsockname()[1]}")
        yield tmp_path


def refused(capsys, *arguments):
    """The one line that the command ends with, exit status 2, without another word."""
    status = main(["cluster", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert re.fullmatch(r"qttdm: .*\n", err), err
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "dmc/walker-wlak"], ["dmc/walker-wlak", "dmc/walker-walk"]),
        (["--preset", "debgu"], ["debgu", "debug, faithful, "]),
        (["--agent", "td-mpc"], ["agent", "td-mpc", "qt-tdm"]),
        (["--seeds", "0,0,x"], ["--seeds", "'0,0,x'", "such as 0,1,2"]),
        (["--seeds", "0,0"], ["--seeds", "'0,0'", "different"]),
        (["--seeds", "1,01"], ["--seeds", "'1,01'", "different"]),
        (["--seeds", "-1"], ["--seeds", "'-1'", "from 0"]),
        (["--seeds", ""], ["--seeds", "''"]),
        (["--seeds", "0,"], ["--seeds", "'0,'"]),
        (["--actors", "-1"], ["--actors", '"-1"', ">= 1"]),
        (["--actors", "0"], ["--actors", '"0"', ">= 1"]),
        (["--shards", "-2"], ["--shards", '"-2"', ">= 1"]),
        (["--gpus-per-seed", "-0.5"], ["--gpus-per-seed", '"-0.5"', "> 0"]),
        (["--gpus-per-seed", "0.3"], ["gpus_per_seed=0.3", "1/n", "0.5"]),
        (["--env-steps", "-1"], ["--env-steps", '"-1"', ">= 1"]),
        (["--set", "cluster.envs_per_actor=-1"], ["cluster.envs_per_actor", "-1", "> 0"]),
        (["--set", "cluster.actor_cpus=-1"], ["cluster.actor_cpus", "-1", ">= 0"]),
        (["--set", "cluster.actrs=2"], ["cluster.actrs", "actors"]),
        (["--set", "cluster.metrics_port=0"], ["cluster.metrics_port", "0"]),
        (["--actors", "2", "--set", "cluster.actors=3"], ["--actors", "--set cluster.actors", "same setting"]),
        (["--set", "cluster={publish_every: 50, max_staleness: 20}"], ["max_staleness=20", "at least 50"]),
        (["--set", "cluster.service.max_wait_ms=60000"], ["service.max_wait_ms=60000", "asking.timeout_seconds"]),
        (["--shards", "200"], ["cluster.shards=200", "one episode of 20 decisions", "at least 4000"]),
        (["--gpus-per-seed", "1", "--set", "device=cpu"], ["device=cpu", "gpus_per_seed=1", "auto"]),
        (["--set", "device=cuda"], ["device=cuda", "gpus_per_seed=0", "auto"]),
        (["--gpus-per-seed", "2", "--set", "device=cuda:1"], ["device=cuda:1", "gpus_per_seed=2", "auto"]),
        (["--set", "qt-tdm.tdm.window=50"], ["qt-tdm: tdm.window=50", "20 decisions"]),
        (["--name", "a/b"], ["--name a/b", "plain name", "walker-1"]),
        (["--name", ""], ["--name", "plain name"]),
        (["--name", "../up"], ["--name ../up", "plain name"]),
        (["--name", ".hidden"], ["--name .hidden", "plain name"]),
        (["--nmae", "x"], ["--nmae"]),
    ],
)
def test_mistakes(here, capsys, arguments, words):
    line = refused(capsys, *(["train"] if "--preset" in arguments else DEBUG), *arguments)
    for word in words:
        assert word in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["trian"], ["stop"], ["resume"], ["status", "--x"], ["stop", "a", "b"]])
def test_other_commands(here, capsys, arguments):
    refused(capsys, *arguments)


def test_a_directory_that_exists_is_left_alone(here, capsys):
    (here / "runs" / "walk").mkdir(parents=True)
    line = refused(capsys, *DEBUG, "--name", "walk")
    assert f"{here}/runs/walk: exists; choose another --name" in line
    assert "resume" not in line, "it is no run"
    assert list((here / "runs" / "walk").iterdir()) == []


def test_a_run_that_exists_may_go_on(here, capsys):
    (here / "runs" / "walk" / "seed-0").mkdir(parents=True)
    (here / "runs" / "walk" / "seed-0" / "config.yaml").touch()
    assert "qttdm cluster resume walk" in refused(capsys, *DEBUG, "--name", "walk")


def test_a_runs_directory_that_is_a_file(here, capsys):
    (here / "file").touch()
    line = refused(capsys, *DEBUG, "--name", "walk", "--runs-dir", "file")
    assert f"{here}/file/walk: cannot be made, {here}/file is no directory" in line
    assert "--runs-dir" in line


@pytest.fixture
def folder():
    """Where everyone may go, and at first only its owner may write; this process is not its owner."""
    user = os.getuid()
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o555)
        if user == 0:  # root may write anywhere: os.access then answers for nobody
            os.setresuid(65534, 0, 0)
        yield Path(path)
        if user == 0:
            os.setresuid(0, 0, 0)
        Path(path).chmod(0o755)


def test_a_runs_directory_that_may_not_be_written(here, folder, capsys):
    arguments = [*DEBUG, "--name", "walk", "--runs-dir", folder / "runs"]
    line = refused(capsys, *arguments)
    assert f"{folder}/runs/walk: cannot be made, {folder} is no directory that may be written to" in line
    assert "--runs-dir" in line
    folder.chmod(0o777)
    assert "no Ray cluster" in refused(capsys, *arguments)


class Silent(BaseHTTPRequestHandler):
    """A web server of someone's."""

    def log_message(self, *_):
        pass


class TestNoCluster:
    """What says so, and what would help."""

    @pytest.mark.parametrize("command", [[*DEBUG, "--name", "walk"], ["status"], ["stop", "walk"]])
    def test_nothing_answers(self, here, capsys, command):
        line = refused(capsys, *command)
        assert f"no Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: none answers" in line
        assert "`ray start --head`" in line
        assert "--num-cpus=N" in line
        assert list(here.iterdir()) == []

    def test_none_on_this_machine(self, here, capsys, monkeypatch):
        monkeypatch.delenv("RAY_ADDRESS")
        # Others may be using Ray on this machine: its list of processes is what Ray looks through.
        monkeypatch.setattr(ray._private.services, "find_gcs_addresses", set)
        monkeypatch.setenv("RAY_TMPDIR", str(here))
        monkeypatch.setattr(ray._common.utils, "get_default_ray_temp_dir", lambda: str(here))
        line = refused(capsys, *DEBUG)
        assert "no Ray cluster on this machine; start one with `ray start --head`" in line

    @pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265", "10.0.0.1", ":6379", "head:x"])
    def test_an_address_of_another_kind(self, here, capsys, monkeypatch, address):
        monkeypatch.setenv("RAY_ADDRESS", address)
        line = refused(capsys, *DEBUG)
        assert f"RAY_ADDRESS={address}: want <host>:<port>" in line
        assert "6379" in line

    def test_something_else_answers(self, here, capsys, monkeypatch):
        server = HTTPServer(("127.0.0.1", 0), Silent)
        threading.Thread(target=server.serve_forever).start()
        try:
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
            line = refused(capsys, *DEBUG)
        finally:
            server.shutdown()
            server.server_close()
        assert re.search(r"none answers \(.*HTTP.*\); want <host>:<port> of the cluster's head", line)

    def test_something_else_answers_in_the_same_protocol(self, here, capsys, monkeypatch):
        """As the port for Ray's client does."""
        server = grpc.server(ThreadPoolExecutor(1))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        try:
            line = refused(capsys, *DEBUG)
        finally:
            server.stop(None)
        assert re.search(r"something else answers there \(.*\); want <host>:<port> of the cluster's head", line)

    def test_token_mode_without_a_token(self, here, capsys, monkeypatch):
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("HOME", str(here))
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        line = refused(capsys, *DEBUG)
        assert "RAY_AUTH_MODE=token, but there is no cluster token here" in line
        assert "RAY_AUTH_TOKEN_PATH" in line


class TestResume:
    """What is refused of a run that was started before; here one of which nothing but its configuration is there."""

    @pytest.fixture
    def walk(self, here):
        options = parsed("cluster", *DEBUG, "--seeds", "2,10", "--shards", "2")
        new_seeds(here / "runs" / "walk", options["settings"].configs())
        return here / "runs" / "walk"

    @staticmethod
    def edit(walk, key, value):
        path = walk / "seed-2" / "config.yaml"
        path.write_text(dump_config(load_config(RunConfig, path, overrides=[f"{key}={value}"])))

    def test_what_is_not_a_run(self, here, capsys):
        (here / "runs" / "folder").mkdir(parents=True)
        for name in ("folder", "nothing"):
            assert f"{here}/runs/{name}: not a run of `qttdm cluster train`" in refused(capsys, "resume", name)

    def test_all_seeds_are_found(self, walk, capsys):
        assert "no Ray cluster" in refused(capsys, "resume", "walk")

    def test_another_number_of_shards(self, walk, capsys):
        for seed in (2, 10):
            for shard in (0, 1):
                (walk / f"seed-{seed}" / "replay" / f"shard-{shard}").mkdir(parents=True)
        assert "no Ray cluster" in refused(capsys, "resume", "walk")
        self.edit(walk, "cluster.shards", 1)
        line = refused(capsys, "resume", "walk")
        assert f"{walk}/seed-2/config.yaml: got cluster.shards=1, but its replay is spread over 2" in line

    def test_settings_that_no_longer_fit(self, walk, capsys):
        self.edit(walk, "qt-tdm.tdm.window", 50)
        assert "qt-tdm: tdm.window=50 is longer than an episode" in refused(capsys, "resume", "walk")

    def test_a_configuration_that_cannot_be_read(self, walk, capsys):
        (walk / "seed-10" / "config.yaml").write_text("task: [")
        assert f"{walk}/seed-10/config.yaml" in refused(capsys, "resume", "walk")


def parsed(*words):
    """The arguments of the command's function."""
    return app.parse_args(words, print_error=False, exit_on_error=False)[1].arguments


def made(*words):
    """The options of the command that `make WORDS` would run."""
    plain = {"PATH": os.environ["PATH"]}  # not what the tests themselves were called with, by make
    printed = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    ).stdout
    command = printed.replace("\\\n", " ").strip().splitlines()[-1]
    return parsed(*shlex.split(command)[1:])


def test_make_passes_everything_on():
    options = made(
        *("train-cluster", "TASK=dmc/walker-walk", "PRESET=paper-dmc", "SEEDS=0,1,2,3", "ACTORS=4", "SHARDS=2"),
        *("GPUS_PER_SEED=0.5", "NAME=walk", "DETACH=1", "ARGS=--env-steps 10000"),
    )
    settings = options["settings"]
    assert (settings.task, settings.preset, settings.seeds) == ("dmc/walker-walk", "paper-dmc", "0,1,2,3")
    assert (settings.actors, settings.shards, settings.gpus_per_seed, settings.env_steps) == (4, 2, 0.5, 10000)
    assert (options["name"], options["detach"]) == ("walk", True)
    [config, *others] = settings.configs()
    assert (config.cluster.actors, config.cluster.shards, config.cluster.gpus_per_seed) == (4, 2, 0.5)
    assert [config.seed for config in others] == [1, 2, 3]


def test_make_alone_trains_two_seeds_with_the_laptop_preset():
    options = made("train-cluster")
    assert "detach" not in options
    [config, other] = options.get("settings", SeedSettings()).configs()
    assert (config.task, config.training.env_steps) == ("dmc/cartpole-swingup", 50_000)
    assert (config.seed, other.seed) == (0, 1)
