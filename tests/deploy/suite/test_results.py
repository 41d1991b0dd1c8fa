"""Results go to a file and come back; what is no result is named."""

import numpy as np
import pytest

from qttdm.common.config import ConfigError
from qttdm.deploy.suite.results import Result, read_result, settings_hash
from tests.fakes import tiny_config

RESULT = Result(
    "metaworld/drawer-open", 12, "0a1b2c", "1a2b3c4-dirty", 'a "CPU", fast', 80.5, [[5000, 31.5, 0.25, 60.1]]
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "wide" / "metaworld-drawer-open-seed12.csv"
    RESULT.write(path)
    return path


def test_a_result_comes_back_as_it_was(path):
    assert read_result(path) == RESULT
    assert [path.name for path in path.parent.iterdir()] == [path.name]
    assert np.concatenate(RESULT.curve).tolist() == [5000, 0.25]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5000", "five"),
        ("0.25", ""),
        ("commit", "comit"),
        ("# {", "{{"),
        ("env_steps", "steps"),
        ("5000,31.5,0.25,60.1\n", ""),
    ],
)
def test_a_damaged_file_is_named(path, old, new):
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=r"metaworld-drawer-open-seed12\.csv: not a result"):
        read_result(path)


def test_a_file_of_another_name_is_named(path):
    with pytest.raises(ConfigError, match=r"notes\.csv.*dmc-walker-walk-seed0\.csv"):
        read_result(path.rename(path.parent / "notes.csv"))


def test_settings_are_what_a_run_does_and_not_where():
    same = settings_hash(tiny_config(seed=0))
    assert settings_hash(tiny_config("cluster.actors=3", "threads=2", "qt-tdm.planner.compile=true", seed=1)) == same
    for other in ("qt-tdm.discount=0.9", "training.env_steps=640", "env.action_repeat=4", "replay.capacity=900"):
        assert settings_hash(tiny_config(other)) != same
