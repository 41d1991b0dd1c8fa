"""Learning from a data set: an offline run is one whose environment steps are 0, and all else is the house's."""

import json
import shutil
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from qttdm.common.checkpoint import CheckpointStore
from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.episode import Episode
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.local import new_run, resume_run
from qttdm.deploy.runs.training import make_directory
from qttdm.deploy.screens.progress import Progress
from qttdm.replay.datasets import write_dataset
from tests.fakes import tiny_config

DECISIONS, EPISODES = 10, 6
OFFLINE = "training={env_steps: 0, offline_updates: 12, eval_every: 5, checkpoint_every: 4, eval_episodes: 1}"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Random episodes of the toy task."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(EPISODES):
        observations = rng.uniform(-1, 1, (DECISIONS + 1, 3)).astype(np.float32)
        actions = rng.uniform(-1, 1, (DECISIONS, 2)).astype(np.float32)
        rewards = -np.abs(observations[1:]).sum(axis=1)
        episodes.append(Episode(observations, actions, rewards, False, 80, number=number))
    write_dataset("toy-v0", episodes, TaskSpec(3, 2, 8, 80, False, name="gym/FakePoint-v0"))
    return "toy-v0"


def config_of(dataset: str, *more: str, agent: str = "trajectory-transformer"):
    return tiny_config(OFFLINE, f"training.dataset={dataset}", *more, agent=agent)


def train(directory: RunDir, start, stop_after: int | None = None):
    with closing(start()) as run, Progress(12, None) as progress:
        stops = (lambda: False) if stop_after is None else (lambda: run.learner.updates >= stop_after)
        run.train(progress, time_is_up=stops)
    return read_metrics(directory.metrics_path)


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("trajectory-transformer", []),
        ("trajectory-transformer", ["trajectory-transformer.critic=true"]),
        (
            "trajectory-transformer",
            ["trajectory-transformer={goals: true, planner: {mode: imitate, goal: [0, 0.5, 0]}}"],
        ),
        ("iql", []),
        ("mlp", []),
        ("qt-tdm", []),
    ],
)
def test_an_offline_run_makes_its_updates_and_collects_nothing(dataset, tmp_path, agent, settings):
    config, directory = make_directory(config_of(dataset, *settings, agent=agent), tmp_path / "run")
    lines = train(directory, partial(new_run, config, directory))
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [(e["updates"], e["env_steps"], e["decisions"]) for e in evaluations] == [
        (5, 0, 60),
        (10, 0, 60),
        (12, 0, 60),
    ]
    assert not [line for line in lines if line["kind"] == "train"]  # logged episodes are not ours
    saved = CheckpointStore(directory.checkpoints_dir).load_latest()
    assert saved.meta["counters"]["checkpoints"] == 3
    assert int(saved.tensors["updates"]) == 12


def test_a_resumed_run_does_what_it_would_have_done(dataset, tmp_path, monkeypatch):
    """Without the data set: its episodes are in the run's own replay."""
    config, whole = make_directory(config_of(dataset), tmp_path / "whole")
    train(whole, partial(new_run, config, whole))
    config, parted = make_directory(config_of(dataset), tmp_path / "parted")
    train(parted, partial(new_run, config, parted), stop_after=7)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    train(parted, partial(resume_run, parted))
    newest = [CheckpointStore(d.checkpoints_dir).load_latest().tensors for d in (whole, parted)]
    assert newest[0].keys() == newest[1].keys()
    assert all(torch.equal(newest[0][name], newest[1][name]) for name in newest[0])


def test_a_run_begins_with_another_s_networks_and_with_some_episodes(dataset, tmp_path):
    config, first = make_directory(config_of(dataset), tmp_path / "first")
    train(first, partial(new_run, config, first))
    before = CheckpointStore(first.checkpoints_dir).load_latest().tensors
    # Others than the first's, which would be fitted anew to them; and nothing that is learned moves at a rate of 0.
    more = ["training.dataset_episodes=2", "trajectory-transformer.learner.sequence.learning_rate=1e-30"]
    settings = [*more, f"training.start_from={first.path}", "seed=5"]
    config, second = make_directory(config_of(dataset, *settings), tmp_path / "second")
    train(second, partial(new_run, config, second), stop_after=6)
    assert (second.checkpoints_dir / "00000001-step-0").is_dir()  # before its first update
    shutil.rmtree(first.path)
    lines = train(second, partial(resume_run, second))
    after = CheckpointStore(second.checkpoints_dir).load_latest().tensors
    for name, tensor in before.items():
        if "/network/" in name:
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-20)
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [(e["updates"], e["decisions"]) for e in evaluations] == [(5, 20), (10, 20), (12, 20)]


def test_own_episodes_follow_the_offline_updates(dataset, tmp_path):
    """20 decisions are 160 simulator steps, and as many updates; nothing is collected at random."""
    config = config_of(dataset, "training.env_steps=160", agent="qt")
    config, directory = make_directory(config, tmp_path / "run")
    lines = train(directory, partial(new_run, config, directory))
    own = [line for line in lines if line["kind"] == "train"]
    assert [(line["env_steps"], line["updates"]) for line in own] == [(80, 12), (160, 22)]
    assert lines[-1]["decisions"] == 80
    assert lines[-1]["updates"] == 32


def test_without_a_simulator_it_learns_and_is_served_and_says_why_it_is_not_evaluated(dataset, tmp_path, capsys):
    metadata = tmp_path / "data" / dataset / "data" / "metadata.json"
    says = json.loads(metadata.read_text())
    del says["qttdm"]  # which names the task
    metadata.write_text(json.dumps(says))
    run = tmp_path / "run"
    command = ["offline", "--dataset", dataset, "--preset", "debug", "--updates", "5", "--run-dir", str(run)]
    assert main([*command, "--agent", "trajectory-transformer"]) == 0
    assert [line["kind"] for line in read_metrics(run / "metrics.jsonl")] == ["update"]
    assert main(["eval", str(run), "--policy-only"]) == 0
    assert main(["eval", str(run)]) == 2
    assert "logs/toy-v0 has no simulator to act in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["training.dataset=toy-v9"], "there is no data set 'toy-v9'"),
        (["training.dataset=null"], "learns from a data set; name it: --dataset ID"),
        (["training.offline_updates=0"], "makes no update"),
        (
            ["trajectory-transformer.model.window=4"],
            "model.window=4 is shorter than planner.context + planner.horizon = 5",
        ),
        (
            ["trajectory-transformer.planner.goal=[0, 0, 0]"],
            "planner.goal needs a model that was trained with goals=true",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(dataset, tmp_path, settings, says):
    with pytest.raises(ConfigError) as error:
        make_directory(config_of(dataset, *settings), tmp_path / "run")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
