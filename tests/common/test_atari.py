"""common/environments/atari.py against Gymnasium's AtariPreprocessing, and its rules on a game written out."""

import importlib.util
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qttdm.common.config import ConfigError
from qttdm.common.environments.atari import AtariFrames, LifeEnds, area_weights, names
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env


def game(name: str = "Breakout") -> gymnasium.Env:
    assert name in names()
    return gymnasium.make(f"{name}NoFrameskip-v4", max_episode_steps=-1, render_mode="rgb_array")


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="AtariPreprocessing needs opencv")
@pytest.mark.parametrize("name", ["Pong", "Breakout", "Seaquest"])
def test_frames_are_gymnasiums(name: str):
    """Frame by frame; resizing may round a half the other way."""
    theirs = gymnasium.wrappers.AtariPreprocessing(game(name), noop_max=0, frame_skip=4, screen_size=64)
    ours = AtariFrames(game(name), idle=0, fire=False)
    rng = np.random.default_rng(0)
    seen = [(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])]
    for action in rng.integers(ours.action_space.n, size=200):
        (one, *outcome, _), (other, *expected, _) = ours.step(action), theirs.step(action)
        assert outcome == expected
        seen.append((one, other))
        if outcome[1]:
            break
    off = np.abs(np.array([a for a, _ in seen], int) - np.array([b for _, b in seen], int))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


def test_areas_are_means_of_the_pixels_they_cover():
    assert area_weights(2, 4).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    np.testing.assert_allclose(area_weights(2, 3), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(area_weights(64, 210).sum(axis=1), 1.0, rtol=1e-5)


class Scripted(gymnasium.Env):
    """A game of two lives, each lost at its 6th frame; frame k shows k in every other pixel, and pays 1."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def __init__(self, fire: bool = True):
        self.meanings = ["NOOP", "FIRE" if fire else "UP", "DOWN"]
        self.ale = SimpleNamespace(lives=lambda: 2 - self.frames // 6, getScreenGrayscale=self._show)
        self.taken: list[int] = []

    def get_action_meanings(self):
        return self.meanings

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frames = 0
        return None, {}

    def step(self, action):
        self.frames += 1
        self.taken.append(int(action))
        return None, 1.0, self.frames >= 12, False, {}

    def _show(self, out):
        out[:] = 0
        out[self.frames % 2 :: 2] = 10 * self.frames


def test_a_step_is_four_frames_and_shows_the_brighter_of_the_last_two():
    env = AtariFrames(Scripted(fire=False), size=8, idle=0)
    env.reset(seed=0)
    image, reward, terminated, _, _ = env.step(2)
    assert (reward, terminated, env.unwrapped.taken) == (4.0, False, [2] * 4)
    assert image[0].tolist() == [40] * 8  # frame 4 drew the even rows
    assert image[1].tolist() == [30] * 8
    env.step(0)
    *_, reward, terminated, _, _ = env.step(0)
    assert (reward, terminated) == (4.0, True)  # the last four frames


def test_fire_begins_a_game_and_each_life():
    env = AtariFrames(Scripted(), size=8, idle=0)
    env.reset(seed=0)
    assert env.unwrapped.taken == [1]
    env.step(2)  # to frame 5
    env.step(2)  # a life is lost on the way
    env.step(2)  # so FIRE is pressed
    assert env.unwrapped.taken == [1, *[2] * 8, *[1] * 3]


def test_a_life_is_an_episode_and_the_next_goes_on_in_the_same_game():
    env = LifeEnds(AtariFrames(Scripted(), size=8, idle=0))
    env.reset(seed=0)  # FIRE is frame 1
    assert env.step(2)[1:4] == (4.0, False, False)
    last, *outcome, _ = env.step(2)
    assert outcome == [4.0, True, False]  # frame 6 costs a life
    shown, _ = env.reset(seed=1)
    assert np.array_equal(shown, last)
    assert env.unwrapped.frames == 9
    assert env.step(2)[1:4] == (3.0, True, False)  # the game's last frames, after FIRE
    assert env.unwrapped.taken == [1, *[2] * 8, *[1] * 3]
    env.reset(seed=2)
    assert env.unwrapped.frames == 1, "another game"
    env.step(2)
    env.reset(seed=2)
    assert env.unwrapped.frames == 1, "a life that was not lost does not go on"


def test_idle_frames_are_drawn_for_each_game():
    env = AtariFrames(Scripted(fire=False), size=8, idle=5)
    lengths = set()
    for seed in range(60):
        env.unwrapped.taken.clear()
        env.reset(seed=seed)
        assert {*env.unwrapped.taken} <= {0}
        lengths.add(len(env.unwrapped.taken))
    assert lengths == set(range(6))


def test_in_training_alone_a_life_ends_an_episode():
    """Breakout without moving loses all five balls."""
    config = EnvConfig(life_loss_ends=True)
    for training, ends in ((True, [4, 3, 2, 1, 0]), (False, [0])):
        env, lives = make_env("atari/Breakout", config, training=training), []
        for episode in range(len(ends)):
            env.reset(seed=episode)
            over = False
            while not over:
                *_, over, truncated, info = env.step(0)
                assert not truncated
            lives.append(info["lives"])
        assert lives == ends


def test_a_task_without_lives_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"env.life_loss_ends=true: minatar/breakout has no lives; want false"):
        make_env("minatar/breakout", EnvConfig(life_loss_ends=True))
