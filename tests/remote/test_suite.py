"""Runs of a suite as tasks of a real cluster: stopped, gone on with, finished."""

import time

import pytest

from qttdm.common.config import load_config
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.suite.cluster import ClusterProcess
from qttdm.deploy.suite.runs import SuiteRun, run_all

pytestmark = pytest.mark.ray
SETTINGS = [
    "env={action_repeat: 8, episode_steps: 80}",
    "training={env_steps: 1600, seed_decisions: 10, eval_every: 320}",  # the stop comes at an evaluation or so
]


def test_a_run_on_the_cluster_is_stopped_and_goes_on(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(RunConfig, preset_path("debug"), overrides=SETTINGS)
    run = SuiteRun(config, tmp_path / "runs", tmp_path / "results")
    metrics = run.run_dir.metrics_path
    deadline = time.monotonic() + 900

    def stopped():
        assert time.monotonic() < deadline
        return metrics.exists() and metrics.read_text().count("\n") >= 3

    said = []
    assert run_all([run], ClusterProcess, 1, stopped, said.append) == {}
    assert said[-1] == "dmc/cartpole-swingup seed 0: stopped"
    assert len(list(run.run_dir.checkpoints_dir.iterdir())) == 1
    assert not run.done
    assert run_all([run], ClusterProcess, 1, lambda: False, said.append) == {}
    assert said[-1] == "dmc/cartpole-swingup seed 0: finished"
    assert run.done
