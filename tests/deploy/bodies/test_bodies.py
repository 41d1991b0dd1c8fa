"""deploy/bodies/: gaits are what their environments would do, and many bodies can be collected in pieces."""

import json

import numpy as np
import pytest

from qttdm.common.environments.config import EnvConfig
from qttdm.deploy.bodies import gaits
from qttdm.deploy.bodies.collect import Bodies, gather, names
from qttdm.deploy.bodies.gaits import Body, search
from qttdm.deploy.cli.main import main
from qttdm.replay.datasets import open_dataset

SHORT = EnvConfig(action_repeat=2, episode_steps=20)
COLLECT = ["collect", "--universe", "chain", "--out", "walkers", "--episodes", "2", "--most-joints", "5"]
COLLECT += ["--set", "env={action_repeat: 2, episode_steps: 20}"]


@pytest.fixture(autouse=True)
def brief(monkeypatch, tmp_path):
    """A short search; data sets in a folder of the test's."""
    monkeypatch.setattr(gaits, "RANDOM", 12)
    monkeypatch.setattr(gaits, "NEAR", 6)
    monkeypatch.setattr(gaits, "SEARCH_SECONDS", 1.0)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))


@pytest.mark.parametrize("threads", [1, 2])
def test_rolled_out_is_what_the_environment_does(threads):
    body = Body("universe/bush-2", SHORT, threads)
    seeds, decisions = [3, 4], body.spec.episode_decisions
    actions = np.random.default_rng(0).uniform(-1, 1, (2, decisions, body.spec.action_dim)).astype(np.float32)
    observations, rewards = body.roll(body.starts(seeds), actions)
    for row, seed in enumerate(seeds):
        seen, earned = [body.env.reset(seed=seed)[0]], []
        for action in actions[row]:
            observation, reward, _, truncated, _ = body.env.step(action)
            seen.append(observation)
            earned.append(reward)
        assert truncated
        assert observations[row] == pytest.approx(np.stack(seen), abs=1e-5)
        assert rewards[row] == pytest.approx(np.array(earned), abs=1e-5)


def test_the_search_finds_better_than_the_first_best():
    body = Body("universe/chain-1", SHORT, 1)
    start = body.starts([int(np.random.default_rng(0).integers(2**31))])
    found = search(body, np.random.default_rng(0))
    actions = found.actions(body.times(20))
    assert actions.shape == (1, 20, body.spec.action_dim)
    assert np.abs(actions).max() <= 1
    earned = body.roll(start, actions)[1].sum()
    assert earned > 3 * body.roll(start, np.zeros_like(actions))[1].sum()
    near = found.near(50, np.random.default_rng(1))
    assert all(((a >= 0) & (a <= 1)).all() for a in vars(near).values())
    assert 0 < np.abs(near.amplitudes - found.amplitudes).mean() < 0.2


def test_a_gait_repeats_after_its_period():
    gait = gaits.Gaits(*np.array([[[0.3, 0.6]], [[0.1, 0.9]], [[0.5, 0.4]]]), np.array([0.2]))  # of 1 Hz
    acted = gait.actions(np.array([0.0, 0.3, 1.0, 1.3]))[0]
    assert acted[2:] == pytest.approx(acted[:2], abs=1e-6)
    assert acted[0] == pytest.approx([0.3 * np.sin(0.2 * np.pi), -0.2 + 0.6 * np.sin(1.8 * np.pi)], abs=1e-6)


def test_a_share_of_episodes_has_noise():
    noisy = gather("universe/chain-1", Bodies(SHORT, 0, 4, 0.5), 1)
    clean = gather("universe/chain-1", Bodies(SHORT, 0, 4, 0.0), 1)
    assert [np.array_equal(a.actions, b.actions) for a, b in zip(noisy.episodes, clean.episodes, strict=True)] == [
        False,
        False,
        True,
        True,
    ]
    assert clean.gait == pytest.approx(np.mean([e.episode_return for e in clean.episodes]))
    assert noisy.gait == clean.gait != clean.still


def test_many_bodies_are_collected_and_the_same_command_goes_on(tmp_path, capsys):
    assert main([*COLLECT, "--bodies", "1"]) == 0
    folder, tasks = tmp_path / "data" / "walkers", names("chain", 2, 0, 5)
    first, second = (folder / f"{task.removeprefix('universe/')}-v0" for task in tasks)
    before = (first / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert main([*COLLECT, "--bodies", "2"]) == 0
    wanted = open_dataset(str(second))
    episodes = list(wanted.episodes())
    metadata = second / "data" / "metadata.json"  # as a kill before the end leaves it
    metadata.write_text(json.dumps({k: v for k, v in json.loads(metadata.read_text()).items() if k != "qttdm"}))
    assert main([*COLLECT, "--bodies", "2"]) == 0
    assert (first / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    again = open_dataset(str(second))
    assert (again.task, again.action_repeat, again.stored_episodes) == (tasks[1], 2, 2)
    assert again.references.keys() == {"expert", "random"}
    for one, other in zip(episodes, again.episodes(), strict=True):
        assert np.array_equal(one.observations, other.observations)
    assert "walkers: 2 of 2 bodies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--task", "dmc/walker-walk"], "--task: has no effect with --universe"),
        (["--out", "no id"], "is no id"),
        (["--most-joints", "3"], "--most-joints"),
        (["--noise", "2"], "--noise"),
    ],
)
def test_what_contradicts_is_one_line(tmp_path, capsys, more, says):
    assert main([*COLLECT, *more]) == 2
    assert says in (err := capsys.readouterr().err)
    assert (err.count("\n"), (tmp_path / "data").exists()) == (1, False)
