"""A run knows its task: it acts where no simulator is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qttdm.common.config import ConfigError
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.planner_service.serving.client import Client
from tests.deploy.runs.test_serve import serving
from tests.fakes import randomise, tiny_config

ROOT = Path(__file__).parents[3]


def dmc_run(folder):
    run = new_run(tiny_config("env={action_repeat: 2}", task="dmc/cartpole-swingup"), RunDir.create(folder))
    randomise(run.learner.networks)
    run.learner.updates = 1
    run.loop.store.save(10, run.learner.state(), {"counters": {}}, {})
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return dmc_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def without_simulators(tmp_path):
    """PYTHONPATH on which none of the simulators can be imported."""
    for name in ("dm_control", "mujoco", "metaworld"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    return os.pathsep.join([str(tmp_path), str(ROOT)])


def test_serves_without_a_simulator(trained, without_simulators):
    with serving(trained.run_dir.path, PYTHONPATH=without_simulators) as child, Client(port=child.port) as client:
        assert client.info["decision_seconds"] == pytest.approx(0.02)
        assert client.info["observation_parts"] == [{"name": "position", "size": 3}, {"name": "velocity", "size": 2}]
        assert client.info["action_bounds"] == {"low": [-1.0], "high": [1.0]}
        assert client.episode(seed=0).act([0.0] * 5)["action"].shape == (1,)


def test_acts_without_a_simulator(trained, without_simulators):
    command = [sys.executable, "-m", "qttdm.deploy.cli.main", "eval", str(trained.run_dir.path)]
    own = os.environ | {"PYTHONPATH": without_simulators, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*command, "--policy-only"], env=own, capture_output=True, text=True, timeout=600)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("100 decisions on random observations: ")
    needs = subprocess.run([*command, "--episodes", "1"], env=own, capture_output=True, text=True, timeout=600)
    assert needs.returncode != 0  # or the simulators were there after all


def test_is_what_an_environment_says_and_older_runs_ask_one(tmp_path):
    run = dmc_run(tmp_path / "run")
    assert TrainedAgent(run.run_dir.path).spec == run.agent.spec
    run.run_dir.task_path.unlink()
    assert TrainedAgent(run.run_dir.path).spec == run.agent.spec


def test_other_settings_of_the_environment_count(trained):
    other = TrainedAgent(trained.run_dir.path, ["env.action_repeat=4"])
    assert (other.spec.action_repeat, other.spec.decision_seconds) == (4, pytest.approx(0.04))


def test_a_damaged_one_is_named(tmp_path):
    run = dmc_run(tmp_path / "run")
    run.run_dir.task_path.write_text('{"task": 3}')
    with pytest.raises(ConfigError, match=r"task\.json: damaged .*; remove it, and the environment is asked"):
        TrainedAgent(run.run_dir.path)


@pytest.mark.parametrize(("more", "words"), [(["RUN", "--video"], "--video films"), ([], "name a run")])
def test_policy_only_refuses_what_it_cannot_do(trained, capsys, more, words):
    arguments = [str(trained.run_dir.path) if word == "RUN" else word for word in more]
    assert main(["eval", *arguments, "--policy-only"]) == 2
    assert words in capsys.readouterr().err
