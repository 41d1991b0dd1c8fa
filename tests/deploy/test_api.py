"""deploy/api.py, as `import qttdm` gives it: an own environment from a class to an acting agent."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import qttdm
from qttdm.common.config import ConfigError
from qttdm.deploy.cli.main import main


class Point(gymnasium.Env):
    """A point on a line; actions from 0 to 10, nested Dicts to observe, with a choice of 5, 6 or 7 in them."""

    def __init__(self):
        inner = spaces.Dict({"mode": spaces.Discrete(3, start=5), "x": spaces.Box(-9, 9, (2,))})
        self.observation_space = spaces.Dict({"point": inner, "v": spaces.Box(-9, 9, ())})
        self.action_space = spaces.Box(0.0, 10.0, (1, 1))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self._observe(), {}

    def step(self, action):
        assert 0 <= action[0, 0] <= 10
        self.x = np.clip(self.x + 0.02 * (action[0] - 5), -9, 9).astype(np.float32)
        return self._observe(), float(-np.abs(self.x).sum()), False, False, {"success": True}

    def _observe(self):
        return {"v": np.float32(0.5), "point": {"x": self.x, "mode": 6}}


SETTINGS = {
    "env": {"episode_steps": 20},
    "env.action_repeat": 1,
    "training": {"eval_episodes": 2, "seed_decisions": 40},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return qttdm.train(Point, "debug", seed=3, env_steps=80, run_dir=tmp_path_factory.mktemp("api") / "run", **SETTINGS)


def test_a_class_is_trained_and_its_run_is_told(run):
    assert (run / "config.yaml").is_file()
    rows = qttdm.metrics(run)
    kinds = {*rows["kind"]} if hasattr(rows, "columns") else {row["kind"] for row in rows}
    assert kinds == {"train", "update", "eval"}
    result = qttdm.evaluate(run, episodes=2)
    assert len(result.returns) == 2
    assert result.success == 1.0


def test_a_loaded_agent_acts_in_the_environments_own_units(run):
    env, agent = Point(), qttdm.load(run)
    observation, _ = env.reset(seed=0)
    agent.reset()
    actions = []
    for _ in range(20):
        actions.append(agent.act(observation))
        observation, *_ = env.step(actions[-1])
    assert actions[0].shape == (1, 1)
    assert np.ptp(actions) > 1.0, "not in [-1, 1]"


def test_it_acts_as_the_evaluation_does(run):
    """Dicts are flattened in the space's order: the first action of both is the same for the same observation."""
    agent, (episode, *_) = qttdm.load(run), qttdm.evaluate(run, episodes=1).episodes
    first = episode.observations[0]
    policy = agent._trained.policy
    agent.reset()
    assert first[:3].tolist() == [0, 1, 0]
    seen = {"v": first[5], "point": {"x": first[3:5], "mode": 6}}
    twin = policy.start(qttdm.deploy.api.derive_seed(0, "acting", 1), 0.0)
    want = policy.decide([twin], {"observations": first[None]}).actions[0]
    assert agent.act(seen)[0] == pytest.approx(5 + 5 * want, rel=1e-6)


def test_a_batch_is_as_many_episodes(run):
    agent = qttdm.load(run)
    agent.reset()
    batch = np.array([[0, 1, 0, 1, 1, 0.5], [0, 0, 1, -1, 0, 0.5], [1, 0, 0, 2, 0, 0.5]])
    actions = agent.act(batch)
    assert actions.shape == (3, 1, 1)
    agent = qttdm.load(run)  # it draws the same again
    agent.reset()
    assert agent.act({"point": {"mode": [6, 7, 5], "x": batch[:, 3:5]}, "v": batch[:, 5]}) == pytest.approx(actions)
    with pytest.raises(ConfigError, match=r"^act: got 1 observations, 3 episodes have begun; reset\(\) first$"):
        agent.act(batch[0])
    agent.reset()
    assert agent.act(batch[:1]).shape == (1, 1, 1)
    assert agent.act({"point": {"mode": [6], "x": batch[:1, 3:5]}, "v": [0.5]}).shape == (1, 1, 1)
    assert agent.act({"point": {"mode": 6, "x": batch[0, 3:5]}, "v": [0.5]}).shape == (1, 1), "in another shape, alone"


def shown(mode=6, x=(0.0, 0.0), v=0.5):
    return {"point": {"mode": mode, "x": x}, "v": v}


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ([1.0, 2.0], r"^act: got an observation of shape \(2,\), want \(6,\) or \(B, 6\)$"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, np.nan], "NaN or infinity"),
        ({"x": [1, 2]}, r"^act: got observations \['x'\], want \['point/mode', 'point/x', 'v'\]$"),
        (shown(x=[1]), r"^act: got point/x of shape \(1,\), want \(2,\), or \(B, ..\) in all observations$"),
        (shown(x="ab"), "^act: got point/x as a str, want numbers$"),
        (shown(x=[1, np.inf]), "NaN or infinity"),
        (shown(mode=8), "^act: got 8 in point/mode, want whole numbers from 5 to 7$"),
        (shown(mode=[5, 6], x=[[0, 0]] * 3), r"^act: got point/mode of shape \(2,\), want \(\), or \(B, ..\)"),
        ("abc", r"^act: got a str, want numbers of shape \(6,\)$"),
    ],
)
def test_observations_that_do_not_fit(run, observation, words):
    agent = qttdm.load(run)
    agent.reset()
    with pytest.raises(ConfigError, match=words):
        agent.act(observation)


def test_acting_before_a_reset(run):
    with pytest.raises(ConfigError, match=r"^act: no episode has begun; call reset\(\) first"):
        qttdm.load(run).act([0, 1, 0, 1, 1, 0.5])


def test_a_function_without_a_place_is_for_this_process_alone(tmp_path, capsys):
    """Numbers of any kind that are whole will do."""
    steps, settings = np.float32(8e1), {**SETTINGS, "env.episode_steps": np.int64(20)}
    del settings["env"]
    run = qttdm.train(env=lambda: Point(), preset="debug", env_steps=steps, run_dir=tmp_path / "run", **settings)
    assert "resume" not in capsys.readouterr().out
    assert len(qttdm.evaluate(run, episodes=1).returns) == 1
    code = f"import qttdm; qttdm.load({str(run)!r}); qttdm.evaluate({str(run)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another program handed it to qttdm.train; put it into a module" in other.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: qttdm.train(Point(), "debug"), "^train: got an environment, .*; want a task's name, an environment's"),
        (lambda: qttdm.train(3, "debug"), "^train: got 3; want a task's name"),
        (lambda: qttdm.train(Point), "has no time limit of its own"),
        (lambda: qttdm.train(Point, "debugg"), "^--preset debugg: there is none"),
        (lambda: qttdm.train(Point, "debug", horizon=3), "horizon"),
        (lambda: qttdm.load("nowhere"), "nowhere"),
        (lambda: qttdm.metrics("nowhere"), "nowhere"),
        (lambda: qttdm.evaluate("nowhere", 0), "^evaluate: got episodes=0, want a whole number, at least 1$"),
        (lambda: qttdm.evaluate("nowhere", 1.5), "^evaluate: got episodes=1.5, want a whole number"),
        (lambda: qttdm.plot(), "^plot: got no runs"),
        (lambda: qttdm.plot(["a"]), r"^plot: got \['a'\], want a path$"),
        (lambda: qttdm.load(None), "^load: got None, want a path$"),
        (lambda: qttdm.metrics(3), "^metrics: got 3, want a path$"),
        (lambda: qttdm.train("gym/Pendulum-v1", "debug", run_dir=3), "^train: run_dir: got 3, want a path$"),
        (lambda: qttdm.train("gym/Pendulum-v1", "debug", seeds={1}), r"^train: got \{1\} among the settings"),
        (lambda: qttdm.train(Point, "debug", env="gym/Pendulum-v1"), "^train: got two environments, .*; want one$"),
        (lambda: qttdm.train(env=3), "^train: got 3; want a task's name"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, call, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
    assert [*tmp_path.iterdir()] == []


def test_the_import_alone_brings_no_torch():
    code = "import sys, qttdm; assert 'train' in dir(qttdm); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        qttdm.trian  # noqa: B018


class Keys(gymnasium.Env):
    """Takes 5, 6 or 7; shows the one that pays next as a white column of a grid of bools."""

    observation_space = spaces.Box(0, 1, (6, 6), bool)
    action_space = spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        assert type(action) is int
        assert 5 <= action <= 7
        return self._observe(), float(action - 5 == self.wanted), False, False, {}

    def _observe(self):
        shown = np.zeros((6, 6), bool)
        self.wanted = int(self.np_random.integers(3))
        shown[:, self.wanted] = True
        return shown


def test_images_and_choices_go_all_the_way(tmp_path, capsys):
    run = qttdm.train(
        Keys,
        "debug",
        agent="twm",
        env_steps=200,
        run_dir=tmp_path / "run",
        training={"eval_every": 100, "checkpoint_every": 100, "eval_episodes": 2, "seed_decisions": 40},
        env={"episode_steps": 20, "action_repeat": 1},
    )
    assert len(qttdm.evaluate(run, episodes=2).returns) == 2
    agent, env = qttdm.load(run), Keys()
    agent.reset()
    image, _ = env.reset(seed=0)
    for _ in range(5):
        action = agent.act(image)
        assert action in (5, 6, 7)
        image, *_ = env.step(int(action))
    agent.reset()
    assert agent.act(np.stack([image] * 3)).shape == (3,)
    agent.reset()
    with pytest.raises(ConfigError, match=r"^act: got float32 of shape \(6, 6\), want an image, uint8 \(6, 6, 1\)"):
        agent.act(image.astype(np.float32))
    capsys.readouterr()
    assert main(["eval", str(run), "--policy-only"]) == 0
    assert "decisions on random observations" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"takes vectors and continuous actions, and .*Keys observes images"):
        qttdm.train(Keys, "debug", run_dir=tmp_path / "other", env={"episode_steps": 20})
    assert not (tmp_path / "other").exists()
