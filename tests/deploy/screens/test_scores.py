"""`qttdm scores`: the published numbers from the published scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from qttdm.common.config import ConfigError
from qttdm.common.metrics.lines import COUNTERS
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.screens.scores import read_scores, references, summary

TWM = Path(__file__).parent / "twm_scores.json"


def test_twms_published_numbers():
    """Of the 130 runs of Robine et al. (2023)."""
    got = summary(json.loads(TWM.read_text()))
    assert {name: round(value, 3) for name, value in got.items()} == {
        "mean": 0.956,
        "median": 0.505,
        "IQM": 0.459,
        "optimality gap": 0.513,
    }


def test_a_human_scores_1_and_random_actions_0():
    both = references()
    assert len(both) == 26
    human = summary({game: [h] for game, (_, h) in both.items()})
    assert list(human.values()) == pytest.approx([1.0, 1.0, 1.0, 0.0])
    mixed = summary({game: [r, 2 * h - r] for game, (r, h) in both.items()})  # 0 and 2
    assert list(mixed.values()) == pytest.approx([1.0, 1.0, 1.0, 0.5])


def test_the_command(tmp_path, capsys):
    assert main(["scores", str(TWM)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("mean 0.956, median 0.505, IQM 0.459, optimality gap 0.513\n")
    assert "Pong" in out
    run = RunDir.create(tmp_path / "run")
    run.config_path.write_text("task: atari/Pong\nagent: twm\n")
    counters = dict.fromkeys(COUNTERS, 1)
    lines = [json.dumps({"kind": "eval", **counters, "episode_return": score}) for score in (3.0, 14.6)]
    run.metrics_path.write_text("\n".join([*lines, ""]))
    assert read_scores([run.path]) == {"Pong": [14.6]}
    assert main(["scores", str(run.path)]) == 0
    assert "mean 1.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "cannot be read"),
        ('{"Pong": "x"}', "cannot be read"),
        ('{"Pung": [1]}', "Pung: no game"),
        ('{"Pong": []}', "no score"),
    ],
)
def test_what_are_no_scores(tmp_path, content, says):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ConfigError, match=says):
        summary(read_scores([tmp_path / "s.json"]))
    assert np.isfinite(list(summary({"Pong": [0.0]}).values())).all()
