"""`qttdm collect`: who acts in each kind of data set, and what is said where a run cannot show it."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest

from qttdm.actors.episodes import run_episodes
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.build import make_task_env
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.progress import Progress
from qttdm.replay.codec import decode
from qttdm.replay.datasets import open_dataset
from qttdm.replay.log import records_in
from tests.fakes import tiny_config

STEPS = (80, 160, 240, 320)
"""at which it is evaluated, and saved"""
FEW = ("--references", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with four checkpoints; it acts at random 0.3 of the time at the second, as its epsilon says."""
    run_dir = RunDir.create(tmp_path_factory.mktemp("collect") / "run")
    own = "training={eval_every: 80, checkpoint_every: 80, keep_checkpoints: 9, eval_episodes: 1}"
    config = tiny_config(own, "qt.epsilon={start: 0.4, end: 0.2, share: 1.0}", agent="qt")
    with closing(new_run(config, run_dir)) as run, Progress(320, None) as progress:
        run.train(progress)
    return run_dir.path


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    shutil.copytree(trained, tmp_path / "run")
    evaluate(tmp_path / "run", -1e9, 1e9, 1e9, 1e9)
    return tmp_path / "run"


def evaluate(run, *returns):
    """Say what its evaluations gave."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    evals = [line for line in lines if line["kind"] == "eval"]
    for line, episode_return in zip(evals, returns, strict=True):
        line["episode_return"] = episode_return
    assert tuple(line["env_steps"] for line in evals) == STEPS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def collected(run, kind, *more, out="toy-v0"):
    assert main(["collect", "--run", str(run), "--kind", kind, "--out", out, *FEW, *more]) == 0
    dataset = open_dataset(out)
    return dataset, list(dataset.episodes())


def acted(run, name, count, explore):
    """Episodes of a run or a checkpoint, one by one."""
    agent = TrainedAgent(run)
    env = make_task_env(agent.config, agent.spec)
    seeds = [derive_seed(0, "collected", name, number) for number in range(count)]
    return [run_episodes([env], agent.policy, [seed], explore)[0] for seed in seeds]


def same(got, want):
    return len(got) == len(want) and all(
        np.allclose(g.observations, w.observations, atol=1e-5) and np.allclose(g.actions, w.actions, atol=1e-5)
        for g, w in zip(got, want, strict=True)
    )


def checkpoint(run, step):
    (folder,) = (run / "checkpoints").glob(f"*-step-{step}")
    return folder


def test_each_kind_is_what_it_is_called(run, capsys):
    medium = acted(checkpoint(run, 160), "medium", 3, 0.3)
    expert = acted(run, "expert", 3, 0.0)
    dataset, episodes = collected(run, "expert", "--episodes", "3")
    assert same(episodes, expert)
    reference = np.mean([episode.episode_return for episode in expert[:2]])
    assert dataset.references["expert"] == pytest.approx(reference)
    assert {"kind": "expert", "run": "run", "agent": "qt", "action_repeat": 8}.items() <= dataset.metadata[
        "qttdm"
    ].items()
    said = capsys.readouterr().out
    assert f"toy-v0: 3 episodes, 30 decisions, mean return {np.mean([e.episode_return for e in expert]):.4g} (" in said
    dataset.check(TrainedAgent(run).spec)

    assert same(collected(run, "medium", "--episodes", "3", out="m-v0")[1], medium)
    assert "medium: 00000002-step-160, evaluated at 1e+09" in capsys.readouterr().out
    assert same(collected(run, "medium-expert", "--episodes", "3", out="me-v0")[1], medium[:2] + expert[:1])

    dataset, episodes = collected(run, "random", "--episodes", "40", out="r-v0")
    actions = np.concatenate([episode.actions for episode in episodes])
    assert np.abs(actions.mean(axis=0)).max() < 0.15
    assert actions.std(axis=0) == pytest.approx(1 / 3**0.5, abs=0.05)
    first = np.mean([episode.episode_return for episode in episodes[:2]])
    assert dataset.references["random"] == pytest.approx(first)


def test_medium_replay_is_what_had_been_collected_by_then(run):
    stored = [decode(record) for _, record in records_in(run / "replay" / "shard-0")]
    assert len(stored) == 4
    assert same(collected(run, "medium-replay")[1], stored[:2])
    assert same(collected(run, "medium-replay", "--episodes", "1", out="one-v0")[1], stored[:1])
    shutil.rmtree(run / "replay")
    assert main(["collect", "--run", str(run), "--kind", "medium-replay", "--out", "none-v0", *FEW]) == 2


@pytest.mark.parametrize(
    ("returns", "gone"),
    [
        ((-1e9, -1e9, -1e9, 1e9), ()),  # only the expert is above
        ((-1e9, 1e9, 1e9, 1e9), (80, 160)),  # the first that is left is above, and was perhaps not the first
    ],
)
def test_a_run_that_does_not_show_its_medium_is_one_line(run, capsys, returns, gone):
    evaluate(run, *returns)
    for step in gone:
        shutil.rmtree(checkpoint(run, step))
    assert main(["collect", "--run", str(run), "--kind", "medium", "--out", "toy-v0", *FEW]) == 2
    assert "do not show when its return passed" in (err := capsys.readouterr().err)
    assert (err.count("\n"), "want a run with training.keep_checkpoints=1000" in err) == (1, True)
    assert not (run.parent / "data" / "toy-v0").exists()


def test_random_actions_need_no_run(run, capsys):
    task = ["--task", "gym/FakePoint-v0", "--preset", "debug", "--out", "toy-v0"]
    assert main(["collect", "--kind", "random", "--episodes", "2", *task]) == 0
    assert open_dataset("toy-v0").references is None
    assert main(["collect", "--kind", "expert", *task[:-1], "other-v0"]) == 2
    assert "--kind expert acts with trained networks; want --run" in capsys.readouterr().err
    assert main(["collect", "--kind", "random", *task]) == 2
    assert "data set toy-v0 exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--task", "gym/Pendulum-v1"], "is of gym/FakePoint-v0"),
        (["--agent", "qt"], "--agent: "),
        (["--out", "no id"], "is no id"),
    ],
)
def test_what_contradicts_is_one_line(run, capsys, more, says):
    words = ["collect", "--run", str(run), "--kind", "expert", "--task", "gym/FakePoint-v0", "--out", "toy-v0"]
    assert main([*words, *more]) == 2
    assert says in capsys.readouterr().err
