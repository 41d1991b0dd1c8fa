"""Trained agents in the package: each loads in this version, acts, and is small; and how a run becomes one."""

from pathlib import Path

import numpy as np
import pytest

from qttdm.common.config import ConfigError
from qttdm.deploy.api import evaluate, load
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.pretrained import export_run, find_run, pretrained_names
from qttdm.deploy.runs.trained import TrainedAgent
from tests.deploy.runs.test_export import WIDE, saved


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


@pytest.mark.parametrize("name", pretrained_names())
def test_the_packages_agents_load_and_act(name):
    run = Path("pretrained", name)
    assert size(find_run(run)) < 1.3e6
    agent = load(run)
    agent.reset()
    shown = np.random.default_rng(0).standard_normal((20, agent._trained.spec.obs_dim))
    assert len(np.unique(agent.act(shown))) > 2


def test_they_know_their_task():
    assert evaluate("pretrained/cartpole-swingup", episodes=1).returns[0] > 400


def test_a_run_becomes_one(tmp_path, capsys):
    run, small = saved(tmp_path / "run", "qt-tdm", WIDE), tmp_path / "small"
    assert main(["export", str(run), "--format", "run", "--out", str(small)]) == 0
    assert "a run for eval and serve" in capsys.readouterr().out
    assert size(small) < 0.7 * size(run)
    assert not (small / "replay").exists()
    shown = np.random.default_rng(0).standard_normal((5, 3))
    agents = load(run), load(small)
    for agent in agents:
        agent.reset()
    assert np.array_equal(agents[0].act(shown), agents[1].act(shown))
    assert main(["train", "--resume", str(small)]) == 2
    assert "resume the run it was exported from" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="small: exists"):
        export_run(TrainedAgent(run), small)


def test_unknown_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no such trained agent; there are .*cartpole-swingup"):
        load("pretrained/cartpole")
    monkeypatch.chdir(tmp_path)
    own = saved(Path("pretrained", "cartpole"), "qt-tdm", WIDE)
    assert find_run(own) == own
