"""deploy/runs/probe.py and check.py: what is wrong with an environment is one line, before anything is written."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qttdm.common.config import ConfigError
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.probe import complaints, is_reproducible, probe

ROOT = Path(__file__).parents[3]


class Sound(gymnasium.Env):
    """Five steps an episode, which terminates; a reward of 2 for each."""

    observation_space = spaces.Box(-5, 5, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.state = 0, self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action):
        self.count += 1
        return self.state.copy(), 2.0, self.count == 5, False, {}


class WrongShape(Sound):
    def step(self, action):
        return np.zeros(4, np.float32), *super().step(action)[1:]


class WrongAtReset(Sound):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0][:2], {}


class NanLater(Sound):
    def step(self, action):
        super().step(action)
        return np.array([0, np.nan if self.count >= 3 else 0, 0], np.float32), 0.0, False, False, {}


class NanReward(Sound):
    def step(self, action):
        return self.state, np.inf, False, False, {}


class OldStyle(Sound):
    def step(self, action):
        return self.state, 0.0, False, {}


class Hangs(Sound):
    def step(self, action):
        time.sleep(20)


class NeverMade(Sound):
    def __init__(self):
        time.sleep(20)


class Spaceless(gymnasium.Env):
    pass


class HalfSpaceless(Sound):
    @property
    def action_space(self):
        raise ValueError("not yet")


class SaysNo(Sound):
    def step(self, action):
        return self.state, 0.0, "no", False, {}


class SaysYes(Sound):
    def step(self, action):
        return self.state, 0.0, False, False, {"success": "yes"}


class Unseeded(Sound):
    def reset(self, *, seed=None, options=None):
        super().reset()
        self.count = 0
        self.state = np.random.default_rng().uniform(-1, 1, 3).astype(np.float32)
        return self.state, {}


def task(kind: type) -> str:
    return f"{kind.__module__}:{kind.__name__}"


HANGS = ["--set", "cluster={hang_seconds: 3, timeout_seconds: 2}"]
BAD = [
    (WrongShape, r": step returned an observation of 4 numbers, its space declares 3$"),
    (WrongAtReset, r": reset returned an observation of 2 numbers, its space declares 3$"),
    (NanLater, r": step returned nan in the observation, at number 1$"),
    (NanReward, r": step returned inf as the reward, want a finite number$"),
    (SaysNo, r": step raised TypeError: terminated is 'no', want a bool$"),
    (SaysYes, r": step returned 'yes' as info\[\"success\"\], want a number or a bool$"),
    (Spaceless, r": has no observation_space; want one of gymnasium\.spaces"),
    (HalfSpaceless, r" cannot be made: ValueError: not yet$"),
    (NeverMade, r": making it has taken more than 3 s \(cluster\.hang_seconds\)$"),
    (OldStyle, r": step raised ValueError: not enough values to unpack \(expected 5, got 4\)$"),
]


@pytest.mark.parametrize(("kind", "words"), BAD)
def test_training_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, kind, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--preset", "debug", "--task", task(kind), "--set", "env.episode_steps=40", *HANGS]) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert re.search(words, line)
    assert task(kind) in line
    assert [*tmp_path.iterdir()] == []


class HangsInC(Sound):
    def step(self, action):
        """Python gets no turn: the lists are compared within one call."""
        rows = [[0] * 10**6] * 10**6
        rows == [list(rows[0])] * 10**6  # noqa: B015


def test_a_hang_in_c_ends_the_process_with_a_line():
    env = "make_env(task(HangsInC), EnvConfig(episode_steps=40))"
    code = f"from tests.deploy.runs.test_probe import *; probe({env}, 9, 0.5)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    words = r"qttdm: simulator hung, see (.*); .*:HangsInC: making, a reset or a step has taken more than 0\.5 s \(.*\)"
    found = re.fullmatch(words, line)
    assert found, line
    assert "in step" in Path(found[1]).read_text()
    shutil.rmtree(Path(found[1]).parent)


def test_a_hang_is_a_line_too():
    env = make_env(task(Hangs), EnvConfig(episode_steps=40))
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"Hangs: step has taken more than 0\.3 s \(cluster\.hang_seconds\)$"):
        probe(env, 10, hang_seconds=0.3)
    assert time.monotonic() - began < 10


def test_what_random_actions_gave():
    env = make_env(task(Sound), EnvConfig(episode_steps=40, action_repeat=2))
    sample = probe(env, 7, hang_seconds=10)
    assert (sample.rewards, sample.env_steps) == ([4, 4, 2, 4, 4, 2, 4], 12)
    assert (sample.episodes, sample.terminated) == (2, 2)
    assert len({tuple(o) for o in sample.observations}) == 3, "each episode has a seed of its own"


def test_seeding():
    config = EnvConfig(episode_steps=40)
    assert is_reproducible(task(Sound), config, 10)
    assert not is_reproducible(task(Unseeded), config, 10)


def test_gymnasiums_own_checks_are_passed_on():
    assert complaints(task(Sound), 10) == []
    assert any("reset" in line for line in complaints(task(WrongAtReset), 10))


def test_the_report(capsys):
    options = ["--preset", "debug", "--set", "env.episode_steps=null"]
    assert main(["check", task(Sound), *options]) == 0
    out = capsys.readouterr().out
    assert "3 numbers observed, 2 acted, at most 1,000 steps an episode" in out
    assert "advice: it has no time limit of its own, which a run needs: --set env.episode_steps=1000, as" in out
    assert "100% of them not 0" in out
    assert "seeding: the same seed, the same episode" in out
    assert "check_env: nothing to say" in out
    assert re.search(r"100,000 steps of qt-tdm: about \d+ minutes here", out)
    assert main(["check", task(WrongShape), *options]) == 2
    assert "its space declares 3" in capsys.readouterr().err
