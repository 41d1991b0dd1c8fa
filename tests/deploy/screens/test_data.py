"""deploy/screens/data.py on data sets whose numbers are known."""

import matplotlib.image
import numpy as np
import pytest

from qttdm.common.contracts import TaskSpec
from qttdm.common.episode import Episode
from qttdm.deploy.cli.main import main
from qttdm.replay.datasets import write_dataset

TASK = TaskSpec(3, 2, action_repeat=1, episode_steps=40, terminates=True, name="own/Toy")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Twenty episodes of 1 to 20 steps that pay 1 each, every other one terminates; the third observation is 7."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng, episodes = np.random.default_rng(0), []
    for steps in range(1, 21):
        seen, acted = rng.normal(size=(steps + 1, 3)).astype(np.float32), rng.uniform(-0.5, 0.5, (steps, 2))
        seen[:, 2], acted[: steps // 2, 1] = 7.0, -1.0
        ended = steps % 2 == 0
        episodes.append(Episode(seen, acted.astype(np.float32), np.ones(steps, np.float32), ended, 0))
    episodes[0].observations[0, 0], episodes[-1].observations[-1, 1] = -50.0, 60.0
    write_dataset("toy-v0", episodes, TASK, {"random": 0.5, "expert": 20.5})
    return episodes


def test_the_report(dataset, capsys):
    assert main(["data", "toy-v0"]) == 0
    said = capsys.readouterr().out
    edge = sum(steps // 2 for steps in range(1, 21)) / 210
    for line in (
        "toy-v0: 20 episodes, 210 decisions; 3 numbers observed, 2 acted",
        "returns: from 1 to 20, quartiles 5.75, 10.5, 15.25, mean 10.5",
        "random 0.5, expert 20.5: the mean is at 50% of it",
        "lengths: from 1 to 20, quartiles 5.75, 10.5, 15.25",
        "ends: 10 by termination, 10 by a time limit or whoever collected",
        f"actions at the edge of the box: {edge / 2:.1%} of all numbers; of each, 0%, {edge:.0%}",
        "observations that never change: observation[2]",
        "  observation[2]: from 7 to 7",
    ):
        assert f"{line}\n" in said
    assert "  observation[0]: from -50 to " in said
    assert " to 60\n" in said
    assert [line.split("#")[-1] for line in said.splitlines() if "#" in line] == [" 2"] * 10  # two in each bin
    assert "left out" not in said


def test_what_is_left_out_is_counted(dataset, capsys):
    dataset[3].observations[1, 1] = np.nan
    write_dataset("bad-v0", dataset, TASK)
    assert main(["data", "bad-v0"]) == 0
    said = capsys.readouterr().out
    assert "left out: 1 episodes with values that are not finite; clipped to the box: 0 actions\n" in said
    assert "random" not in said


def test_the_picture(dataset, tmp_path, capsys):
    write_dataset("one-v0", dataset[:1], TASK)  # a single state
    for name in ("toy-v0", "one-v0"):
        assert main(["data", name, "--out", str(tmp_path / "data.png")]) == 0
        assert np.ptp(matplotlib.image.imread(tmp_path / "data.png")[..., :3]) > 0.9
    assert main(["data", "toy-v0", "--out", str(tmp_path / "nowhere" / "data.png")]) == 2
    assert "cannot write the picture" in capsys.readouterr().err
