"""The contract every task keeps, checked on toys that expose it, and on a few real tasks of each family."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qttdm.common.config import ConfigError, validate
from qttdm.common.contracts import ArraySpec, task_data
from qttdm.common.environments import atari, minatar, task_env
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import list_tasks, make_env
from qttdm.common.environments.parts import flatten, parts_of

REAL = [
    "dmc/walker-walk",
    "dmc/ball_in_cup-catch",
    "dmc/humanoid_CMU-run",
    "dmc/quadruped-walk",
    "dmc/lqr-lqr_6_2",
    "metaworld/reach",
    "metaworld/pick-place-wall",
    "gym/Pendulum-v1",
    "gym/Hopper-v5",
]
ONE_OF_EACH = ["dmc/walker-walk", "dmc/point_mass-hard", "dmc/lqr-lqr_2_1", "metaworld/push", "gym/Hopper-v5"]


class Toy(gymnasium.Env):
    """Counts its steps: step k pays k, observes [k, 0, 0, 0, 0], and reports the action it was given."""

    def __init__(self, render_mode=None, low=(-3.0, 0.0), high=(1.0, 10.0), ends_at=10**9):
        self.observation_space = spaces.Dict({"b": spaces.Box(-1, 1, (2, 2)), "a": spaces.Box(-9, 9, (), np.float64)})
        self.action_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        self.ends_at = ends_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        return self._observe(), self.count, self.count >= self.ends_at, False, {"action": action}

    def _observe(self):
        return {"a": np.float64(self.count), "b": np.zeros((2, 2), np.float32)}


class Button(Toy):
    """Takes 5, 6 or 7."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.action_space = spaces.Discrete(3, start=5)


class Switches(Toy):
    def __init__(self, render_mode=None):
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 3])


class Picture(Button):
    """Shows its count in one pixel."""

    def __init__(self, render_mode=None, shape=(4, 6, 3), dtype=np.uint8):
        super().__init__()
        self.observation_space = spaces.Box(0, 1 if dtype is np.bool_ else 255, shape, dtype)

    def _observe(self):
        image = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        image.flat[0] = self.count
        return image


class Camera(Toy):
    def __init__(self, render_mode=None):
        super().__init__()
        self.observation_space = spaces.Dict(
            {"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(0, 255, (64, 64), np.uint8)}
        )


class Blind(Toy):
    """Takes no render_mode."""

    def __init__(self):
        super().__init__()


class Broken(Toy):
    def __init__(self, render_mode=None, error=ValueError):
        raise error("no data\nin this folder")


gymnasium.register("Toy-v0", Toy, max_episode_steps=7)
gymnasium.register("ToyEnds-v0", Toy, max_episode_steps=7, kwargs={"ends_at": 5})
gymnasium.register("ToyEndless-v0", Toy)
gymnasium.register("ToyUnbounded-v0", Toy, max_episode_steps=7, kwargs={"high": (1.0, np.inf)})
gymnasium.register("Button-v0", Button, max_episode_steps=7)
gymnasium.register("Switches-v0", Switches, max_episode_steps=7)
gymnasium.register("Picture-v0", Picture, max_episode_steps=7)
gymnasium.register("PictureGrey-v0", Picture, max_episode_steps=7, kwargs={"shape": (4, 6)})
gymnasium.register("PictureGrid-v0", Picture, max_episode_steps=7, kwargs={"dtype": np.bool_})
gymnasium.register("Camera-v0", Camera, max_episode_steps=7)
gymnasium.register("Blind-v0", Blind, max_episode_steps=7)
gymnasium.register("Broken-v0", Broken, max_episode_steps=7)
gymnasium.register("BrokenType-v0", Broken, max_episode_steps=7, kwargs={"error": TypeError})


def make(task, **config):
    return make_env(task, EnvConfig(**config))


def rollout(env, seed, decisions=8):
    """Observations [T + 1, M] and rewards [T] of an episode's start, under actions fixed by nothing but their index."""
    observations, rewards = [env.reset(seed=seed)[0]], []
    for index in range(decisions):
        action = np.sin(index + np.arange(env.task_spec.action_dim)).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.stack(observations), np.array(rewards)


def test_every_task_of_both_suites_is_listed():
    tasks = list_tasks()
    assert len(set(tasks)) == len(tasks)
    assert sum(task.startswith("metaworld/") for task in tasks) == 50
    assert sum(task.startswith("dmc/") for task in tasks) == 51
    assert {"dmc/ball_in_cup-catch", "dmc/humanoid_CMU-run", "metaworld/reach", "minatar/breakout"} <= set(tasks)
    classic = {"gym/CartPole-v1", "gym/Acrobot-v1", "gym/MountainCar-v0", "gym/Pendulum-v1"}  # the newest of each alone
    assert {task for task in tasks if task.startswith("gym/")} == {*classic, "gym/MountainCarContinuous-v0"}


@pytest.mark.parametrize("task", [task for task in REAL if not task.startswith("gym/")])
def test_the_tasks_made_here_are_listed(task):
    assert task in list_tasks()


@pytest.mark.parametrize("task", REAL)
def test_spaces_and_first_step(task):
    env = make(task, action_repeat=2)
    spec = env.task_spec
    assert env.action_space == spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
    assert env.observation_space.shape == (spec.obs_dim,)
    obs, _ = env.reset(seed=3)
    after, reward, terminated, truncated, info = env.step(np.zeros(spec.action_dim, np.float32))
    for array in (obs, after):
        assert array.dtype == np.float32
        assert array.shape == (spec.obs_dim,)
        assert np.isfinite(array).all()
    assert type(reward) is float
    assert type(terminated) is bool
    assert type(truncated) is bool
    assert info["env_steps"] == 2
    assert ("success" in info) == task.startswith("metaworld/")


@pytest.mark.parametrize(
    ("task", "steps", "terminates"),
    [
        ("dmc/walker-walk", 1000, False),
        ("dmc/lqr-lqr_2_1", 1000, True),
        ("metaworld/reach", 200, False),
        ("gym/Pendulum-v1", 200, True),
        ("gym/Hopper-v5", 1000, True),
    ],
)
def test_what_a_task_declares_and_what_overrides_it(task, steps, terminates):
    spec = make(task, action_repeat=3).task_spec
    assert (spec.episode_steps, spec.episode_decisions, spec.terminates) == (steps, -(-steps // 3), terminates)
    spec = make(task, terminates=not terminates, episode_steps=10, action_repeat=4).task_spec
    assert (spec.episode_steps, spec.episode_decisions, spec.terminates) == (10, 3, not terminates)


def test_dmc_limits_are_the_suites_own():
    suite = importlib.import_module("dm_control.suite")
    for domain in ("acrobot", "cartpole", "fish", "humanoid", "manipulator", "swimmer", "walker"):
        env = suite.load(domain, suite.TASKS_BY_DOMAIN[domain][0])
        assert (
            round(env._step_limit) == make(f"dmc/{domain}-{suite.TASKS_BY_DOMAIN[domain][0]}").task_spec.episode_steps
        )


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_a_seed_fixes_the_whole_episode(task):
    env, other = make(task), make(task)
    first = rollout(env, seed=1)
    different = rollout(env, seed=2)
    again, elsewhere = rollout(env, seed=1), rollout(other, seed=1)
    for repeat in (again, elsewhere):
        np.testing.assert_array_equal(first[0], repeat[0])
        np.testing.assert_array_equal(first[1], repeat[1])
    assert not np.array_equal(first[0][0], different[0][0])


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_unseeded_resets_differ_and_follow_from_the_seed(task):
    env = make(task)
    starts = [env.reset(seed=5)[0], env.reset()[0], env.reset()[0]]
    assert not np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[1], starts[2])
    env.reset(seed=5)
    np.testing.assert_array_equal(env.reset()[0], starts[1])


def test_metaworld_shows_a_new_goal_at_each_reset_and_keeps_it_for_the_episode():
    env = make("metaworld/reach", episode_steps=600)
    goals = [env.reset(seed=seed)[0][-3:] for seed in range(3)]
    assert len(np.unique(goals, axis=0)) == 3
    assert np.abs(goals).min() > 0
    obs, _, _, _, info = env.step(np.ones(4, np.float32))
    np.testing.assert_array_equal(obs[-3:], goals[-1])
    np.testing.assert_array_equal(env.unwrapped._target_pos.astype(np.float32), goals[-1])
    assert info["success"] == 0.0


def test_metaworld_reports_success_and_outlasts_the_librarys_own_limit():
    env = make("metaworld/reach", episode_steps=510, action_repeat=3)
    obs, _ = env.reset(seed=0)
    truncated, decisions, success = False, 0, []
    while not truncated:  # the gripper is driven to the goal it observes
        action = np.append(np.clip(20 * (obs[-3:] - obs[:3]), -1, 1), 0).astype(np.float32)
        obs, _, terminated, truncated, info = env.step(action)
        assert not terminated
        decisions += 1
        success.append(info["success"])
    assert decisions == 170
    assert set(success) == {0.0, 1.0}
    assert all(type(value) is float for value in success)


@pytest.mark.parametrize(("action", "sent"), [((-1, -1), (-3, 0)), ((0, 0), (-1, 5)), ((1, 0.5), (1, 7.5))])
def test_actions_are_scaled_to_the_tasks_bounds(action, sent):
    env = make("gym/Toy-v0")
    env.reset(seed=0)
    info = env.step(np.array(action, np.float32))[-1]
    np.testing.assert_allclose(info["action"], sent, atol=1e-6)


def test_lqr_gets_the_action_as_it_is():
    env = make("dmc/lqr-lqr_6_2")
    env.reset(seed=0)
    env.step(np.array([0.5, -1.0], np.float32))
    np.testing.assert_allclose(env.unwrapped._env.physics.control(), [0.5, -1.0])


def test_dict_observations_are_flattened():
    obs, _ = make("gym/Toy-v0").reset(seed=0)
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs, np.zeros(5))


def test_parts_are_flattened_as_gymnasium_does():
    inner = {
        "d": spaces.MultiDiscrete([3, 2], start=[1, 0]),
        "c": spaces.Box(-1, 1, (2, 2)),
        "m": spaces.MultiBinary(3),
    }
    space = spaces.Dict({"b": spaces.Dict(inner), "a": spaces.Discrete(4, start=-1), "z": spaces.Box(0, 1, ())})
    parts = parts_of(space)
    assert [(part.name, part.size) for part in parts] == [("a", 4), ("b/c", 4), ("b/d", 5), ("b/m", 3), ("z", 1)]
    space.seed(0)
    for _ in range(20):
        shown = space.sample()
        (row,), one = flatten(parts, shown)
        assert one
        assert row.tolist() == spaces.flatten(space, shown).astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("task", "repeat", "decisions"),
    [  # each decision: (observed count, summed reward, env_steps, terminated, truncated)
        ("Toy-v0", 1, [(k, k, 1, False, k == 7) for k in range(1, 8)]),
        ("Toy-v0", 3, [(3, 6, 3, False, False), (6, 15, 3, False, False), (7, 7, 1, False, True)]),
        ("ToyEnds-v0", 3, [(3, 6, 3, False, False), (5, 9, 2, True, False)]),
        ("ToyEnds-v0", 5, [(5, 15, 5, True, False)]),
    ],
)
def test_repeat_sums_rewards_counts_steps_and_stops_at_the_end(task, repeat, decisions):
    env = make(f"gym/{task}", action_repeat=repeat)
    for _ in range(2):  # the second episode starts from nothing
        env.reset(seed=0)
        got = []
        for _ in decisions:
            obs, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
            got.append((obs[0], reward, info["env_steps"], terminated, truncated))
        assert got == decisions


def test_a_task_told_not_to_terminate_truncates_instead():
    env = make("gym/ToyEnds-v0", terminates=False, action_repeat=5)
    env.reset(seed=0)
    assert env.step(np.zeros(2, np.float32))[2:4] == (False, True)


@pytest.mark.parametrize("task", ["dmc/pendulum-swingup", "metaworld/reach", "gym/Pendulum-v1"])
def test_the_time_limit_truncates(task):
    env = make(task, episode_steps=5, action_repeat=2)
    env.reset(seed=0)
    action = np.zeros(env.task_spec.action_dim, np.float32)
    steps = [env.step(action)[2:] for _ in range(env.task_spec.episode_decisions)]
    assert [(terminated, truncated, info["env_steps"]) for terminated, truncated, info in steps] == [
        (False, False, 2),
        (False, False, 2),
        (False, True, 1),
    ]


def test_lqr_terminates_at_rest():
    env = make("dmc/lqr-lqr_2_1")
    env.reset(seed=0)
    physics = env.unwrapped._env.physics
    with physics.reset_context():
        physics.data.qpos[:] = 0
    assert env.step(np.zeros(1, np.float32))[2:4] == (True, False)


def test_hopper_terminates_when_it_falls():
    env = make("gym/Hopper-v5", action_repeat=4)
    env.reset(seed=0)
    ends = [env.step(np.ones(3, np.float32))[2:4]]
    while not any(ends[-1]):
        ends.append(env.step(np.ones(3, np.float32))[2:4])
    assert ends[-1] == (True, False)


OWN_TASK = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

gymnasium.register("OfMyOwn-v0", PendulumEnv, max_episode_steps=7)
"""


def test_a_task_of_ones_own_lies_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_envs.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    env = make_env("gym/my_own_envs:OfMyOwn-v0", EnvConfig())
    assert env.task_spec.episode_steps == 7
    env.reset(seed=0)


OWN_CLASS = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

class Mine(PendulumEnv):
    def step(self, action):
        assert action.shape == (1,)
        *outcome, info = super().step(action)
        return *outcome, info | {"success": True}

def made():
    return gymnasium.make("Pendulum-v1", max_episode_steps=9)
"""


def test_an_environment_of_ones_own_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "my_own_class.py").write_text(OWN_CLASS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    env = make("my_own_class:Mine", episode_steps=7)
    env.reset(seed=0)
    *_, truncated, info = [env.step(np.zeros(1, np.float32)) for _ in range(7)][-1]
    assert (truncated, info["success"]) == (True, True)
    assert env.unwrapped.render_mode == "rgb_array"
    assert make("my_own_class:made").task_spec.episode_steps == 9
    with pytest.raises(ConfigError, match="time limit"):
        make("my_own_class:Mine")


def test_an_own_module_beside_others_of_its_name(tmp_path, monkeypatch):
    """It wins against an installed one, not against Python's own: then both files are named."""
    (tmp_path / "my_twin.py").write_text(OWN_CLASS)
    (tmp_path / "colorsys.py").write_text(OWN_CLASS)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "my_twin.py").write_text("Mine = None")
    monkeypatch.chdir(tmp_path)
    standard = [path for path in sys.path if not path.endswith("-packages")]
    monkeypatch.setattr(sys, "path", [*standard, str(tmp_path / "site-packages"), *sys.path])
    assert make("my_twin:Mine", episode_steps=7).unwrapped.render_mode == "rgb_array"
    with pytest.raises(
        ConfigError, match=r"no 'Mine'; it is .*/lib/.*/colorsys\.py, which hides .*/colorsys\.py: rename"
    ):
        make("colorsys:Mine", episode_steps=7)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_actions_of_any_shape_are_a_vector_here(shape):
    size = int(np.prod(shape))
    low, high = np.full(shape, -2.0, np.float32), np.arange(1, size + 1, dtype=np.float32).reshape(shape)
    gymnasium.register("ToyShape-v0", Toy, max_episode_steps=7, kwargs={"low": low, "high": high})
    env = make("gym/ToyShape-v0")
    assert (env.task_spec.action_dim, env.task_spec.action_shape) == (size, shape)
    assert env.task_spec.action_bounds == ((-2.0,) * size, tuple(range(1, size + 1)))
    env.reset(seed=0)
    taken = np.linspace(-1, 1, size).astype(np.float32)
    sent = env.step(taken)[-1]["action"]
    assert sent.shape == shape
    assert sent.flat == pytest.approx(low.flat + (taken + 1) / 2 * (high - low).flat, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("dmc/walker-wlak", "dmc/walker-walk"),
        ("metaworld/raech", "metaworld/reach"),
        ("gym/Pendulm-v1", "gym/Pendulum-v1"),
        ("walker-walk", "dmc/walker-walk"),
        ("foo/bar", "FAMILY/NAME with FAMILY one of dmc, metaworld, minatar, atari, gym"),
        ("foo/bar", "MODULE:CLASS, such as my_module:MyEnv"),
        ("no_such_module:Env", "cannot be made: ModuleNotFoundError"),
        ("gymnasium:no_such_class", "cannot be made: AttributeError"),
        ("collections:Counter", "is a Counter, want a gymnasium.Env"),
        ("__main__:Env", "another program handed it to qttdm.train; put it into a module"),
        ("gym/Camera-v0", "observes an image, uint8 (64, 64); want one image alone"),
        ("gym/Switches-v0", "needs a Box or Discrete action space"),
        ("gym/ToyUnbounded-v0", "unbounded actions"),
        ("gym/ToyEndless-v0", "want one in its steps: --set env.episode_steps"),
        ("gym/no_such_module:Pendulum-v1", "cannot be made"),
        ("gym/Broken-v0", "cannot be made: ValueError: no data in this folder"),
        ("gym/BrokenType-v0", "cannot be made: TypeError: no data in this folder"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(task, hint):
    with pytest.raises(ConfigError) as caught:
        make(task)
    assert hint in str(caught.value)
    assert task in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choices_are_counted_from_0_and_sent_in_the_tasks_units():
    env = make("gym/Button-v0", action_repeat=2)
    spec = env.task_spec
    assert (spec.choices, spec.first_choice, spec.action_dim, spec.action_bounds) == (3, 5, 1, None)
    assert env.action_space == spaces.Discrete(3)
    env.reset(seed=0)
    for choice in range(3):
        _, reward, *_, info = env.step(np.int64(choice))
        assert info["action"] == 5 + choice
        assert type(info["action"]) is int
        assert reward == (2 * choice + 1) + (2 * choice + 2)
    assert spec.in_units(np.arange(3)).tolist() == [5, 6, 7]
    data = task_data(spec, 4, None)
    assert (data.actions, data.choices) == (ArraySpec((), "int64"), 3)


@pytest.mark.parametrize(
    ("task", "shape", "one"),
    [("Picture", (4, 6, 3), 1), ("PictureGrey", (4, 6, 1), 1), ("PictureGrid", (4, 6, 3), 255)],
)
def test_images_are_uint8_with_channels(task, shape, one):
    env = make(f"gym/{task}-v0")
    assert (env.task_spec.image_shape, env.task_spec.obs_dim) == (shape, np.prod(shape))
    assert env.observation_space == spaces.Box(0, 255, shape, np.uint8)
    first, _ = env.reset(seed=0)
    image, *_ = env.step(0)
    assert (image.dtype, image.shape, first.max()) == (np.uint8, shape, 0)
    assert (image.flat[0], np.count_nonzero(image)) == (one, 1)
    assert task_data(env.task_spec, 4, None, stack=2).observations["observations"] == ArraySpec(shape, "uint8")


@pytest.mark.parametrize("name", minatar.names())
def test_minatars_games_can_be_played_and_seen(name):
    env = make(f"minatar/{name}")
    assert env.task_spec.image_shape[:2] == (10, 10)
    image, _ = env.reset(seed=0)
    assert {*np.unique(image)} == {0, 255}
    for _ in range(30):
        env.step(0)
    assert env.render().shape == (240, 240, 3)
    assert len(np.unique(env.render().reshape(-1, 3), axis=0)) >= 3  # the ground, and two kinds of object


def test_ataris_games_start():
    """All 26 of the 100k benchmark (Kaiser et al., 2020) are there; two of them are played."""
    games = set(atari.names())
    assert {
        *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand"),
        *("CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull"),
        *("KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown"),
    } <= games
    for name in ("Pong", "Freeway"):
        env = make(f"atari/{name}")
        assert env.task_spec.image_shape == (64, 64, 1)
        shown = [env.reset(seed=s)[0] for s in (1, 1, 2)]
        assert np.array_equal(shown[0], shown[1])
        assert env.step(0)[0].std() > 0
        assert env.render().shape == (210, 160, 3)


@pytest.mark.parametrize("bad", [{"action_repeat": 0}, {"episode_steps": 0}, {"terminates": 1}, {"frame_skip": 2}])
def test_config_refuses_nonsense(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        validate(EnvConfig, bad, "test")


def test_the_config_module_loads_no_simulator():
    code = "import sys, qttdm.common.environments.make; print({'mujoco', 'dm_control', 'metaworld'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


DRAW = """
import sys
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from qttdm.common.environments.rendering import RenderError
for task in sys.argv[1:]:
    env = make_env(task, EnvConfig())
    env.reset(seed=0)
    env.step(env.action_space.sample())
    try:
        frame = env.render()
        print(task, frame.dtype, frame.ndim, frame.shape[2], len(set(frame.flat)) > 20)
    except RenderError as error:
        print(task, error)
    env.close()
"""


def draw(gl, *tasks):
    """What a fresh process prints, with MUJOCO_GL as given, None for unset: it is read once, at import."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment |= {"MUJOCO_GL": gl} if gl else {}
    command = [sys.executable, "-c", DRAW, *tasks]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_without_gl_everything_works_but_rendering():
    tasks = ["dmc/walker-walk", "metaworld/reach", "gym/Hopper-v5"]
    done = draw("disabled", *tasks)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == tasks
    assert all("cannot render" in line and "MUJOCO_GL" in line and "libegl1" in line for line in lines)


def test_by_default_frames_are_drawn_or_refused_in_words():
    tasks = ["dmc/walker-walk", "metaworld/reach", "gym/Hopper-v5"]
    done = draw(None, *tasks)
    assert done.returncode == 0, done.stderr
    has_egl = (
        subprocess.run([sys.executable, "-c", "import mujoco.egl"], capture_output=True, check=False).returncode == 0
    )
    wanted = "uint8 3 3 True" if has_egl or sys.platform != "linux" else "cannot render"
    lines = done.stdout.splitlines()
    assert len(lines) == len(tasks)
    assert all(wanted in line for line in lines), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo's own choice is left alone")
@pytest.mark.parametrize(
    ("gl", "words"),
    [
        ("nonsense", "MUJOCO_GL=nonsense: there is none of that name; want egl, osmesa, glfw (with a display)"),
        ("glfw", "MUJOCO_GL=glfw opens a window, and there is no display here; want MUJOCO_GL=egl"),
    ],
)
def test_a_way_to_draw_that_there_is_not_is_refused_in_words(gl, words, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    error = draw(gl, "dmc/walker-walk").stderr.splitlines()[-1]
    assert error.startswith(f"qttdm.common.config.ConfigError: {words}")


def test_an_environment_that_draws_nothing_says_so():
    env = make("gym/Toy-v0")
    env.reset(seed=0)
    env.unwrapped.render = lambda: None
    with pytest.raises(task_env.RenderError, match="draws no RGB frames"):
        env.render()


def test_an_environment_without_a_render_mode_works_but_draws_nothing():
    env = make("gym/Blind-v0")
    assert env.reset(seed=0)[0].shape == (5,)
    with pytest.raises(task_env.RenderError, match="draws no RGB frames"):
        env.render()


def test_what_a_robots_program_is_told():
    """Names and lengths in the flat observation's order, bounds in the task's units, seconds of a decision."""
    spec = make("dmc/reacher-easy", action_repeat=2).task_spec
    assert spec.observation_parts == (("position", 2, (2,), ()), ("to_target", 2, (2,), ()), ("velocity", 2, (2,), ()))
    assert spec.decision_seconds == pytest.approx(0.04)
    assert make("gym/Pendulum-v1").task_spec.action_bounds == ((-2.0,), (2.0,))
    assert make("gym/MountainCarContinuous-v0").task_spec.decision_seconds is None


def test_actions_in_the_tasks_units():
    spec = replace(make("gym/Pendulum-v1").task_spec, action_dim=2, action_bounds=((-2.0, 0.0), (2.0, 10.0)))
    got = spec.in_units(np.array([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0]], np.float32))
    assert got.tolist() == [[-2.0, 0.0], [0.0, 7.5], [2.0, 10.0]]
    assert got.dtype == np.float32
