"""Opening a run's seeds; running them is tested with Ray, tests/remote/."""

import pytest

from qttdm.common.config import ConfigError
from qttdm.deploy.cli.main import main
from qttdm.deploy.cluster.cluster_run import old_seeds


def test_a_finished_seed_goes_on_when_more_steps_are_wanted(tmp_path):
    folder = tmp_path / "walk"
    toy = ["--preset", "debug", "--task", "gym/Pendulum-v1", "--env-steps", "700"]
    assert main(["train", *toy, "--run-dir", str(folder / "seed-0")]) == 0
    assert [seed.state for seed in old_seeds(folder)] == ["finished"]
    (longer,) = old_seeds(folder, env_steps=5000)
    assert (longer.state, longer.config.training.env_steps) == ("queued", 5000)
    with pytest.raises(ConfigError, match=r"--env-steps 100: \S+ has had \d+ already; want more than that"):
        old_seeds(folder, env_steps=100)
