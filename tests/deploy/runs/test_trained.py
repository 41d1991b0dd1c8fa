"""A trained agent: the weights that were saved, without the replay, also while the run goes on."""

import numpy as np
import pytest
import torch

from qttdm.common.checkpoint import CheckpointError
from qttdm.common.config import ConfigError
from qttdm.common.run_dir import RunDir
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent, weights_in
from tests.fakes import randomise, tiny_config

AGENTS = ("qt-tdm", "tdm", "qt", "mlp", "iql", "twm")


def saved_run(folder, agent="qt-tdm", blobs=None):
    """A run with random weights and one checkpoint; blobs: instead of its replay."""
    run = new_run(tiny_config(agent=agent), RunDir.create(folder))
    randomise(run.learner.networks)
    save(run, updates=7, blobs=blobs)
    return run


def save(run, updates, blobs=None):
    run.learner.updates = updates
    run.loop.store.save(80, run.learner.state(), {"counters": {}, "metrics_bytes": 0}, blobs or {})


def evaluated(run):
    """The run's own weights."""
    run.agent.policy.load(run.learner.weights())
    return run.agent.evaluate(2)


def damage(folder):
    (folder / "tensors.safetensors").write_bytes(b"")


@pytest.mark.parametrize("agent", AGENTS)
def test_acts_as_the_run_that_was_saved(tmp_path, agent):
    run = saved_run(tmp_path / "run", agent)
    trained = TrainedAgent(tmp_path / "run")
    assert trained.policy.weights_version == 7
    assert trained.evaluate(2) == evaluated(run)
    assert (trained.spec.obs_dim, trained.spec.action_dim) == (3, 2)


def test_reads_no_blobs(tmp_path):
    """What is kept of a replay may be damaged."""
    run = saved_run(tmp_path / "run", blobs={"replay-0": b"many"})
    (run.loop.store.newest() / "blobs" / "replay-0").write_bytes(b"damaged")
    assert TrainedAgent(tmp_path / "run").policy.weights_version == 7


def test_leaves_torchs_random_numbers_alone(tmp_path):
    saved_run(tmp_path / "run")
    before = torch.get_rng_state()
    TrainedAgent(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_one_checkpoint_by_name(tmp_path):
    run = saved_run(tmp_path / "run")
    first = run.loop.store.newest()
    save(run, updates=9)
    assert TrainedAgent(first).policy.weights_version == 7
    assert TrainedAgent(tmp_path / "run").policy.weights_version == 9
    damage(first)
    with pytest.raises(ConfigError, match=r"00000001-step-80: cannot load the checkpoint \(tensors"):
        TrainedAgent(first)


def test_newer_weights_come_once_and_only_from_newer_checkpoints(tmp_path):
    run = saved_run(tmp_path / "run")
    trained = TrainedAgent(tmp_path / "run")
    assert trained.newer_weights() is None
    randomise(run.learner.networks)
    save(run, updates=9)
    weights = trained.newer_weights()
    assert weights.version == 9
    assert np.array_equal(weights.values, run.learner.weights().values)
    assert trained.newer_weights() is None
    trained.policy.load(weights)
    assert trained.evaluate(2) == evaluated(run)


def test_a_damaged_newer_checkpoint_changes_nothing(tmp_path):
    run = saved_run(tmp_path / "run")
    trained = TrainedAgent(tmp_path / "run")
    save(run, updates=9)
    damage(run.loop.store.newest())
    assert trained.newer_weights() is None
    save(run, updates=11)
    assert trained.newer_weights().version == 11


def test_of_several_newer_ones_the_newest_good_one_is_taken(tmp_path):
    run = saved_run(tmp_path / "run")
    trained = TrainedAgent(tmp_path / "run")
    save(run, updates=9)
    save(run, updates=10)
    damage(run.loop.store.newest())
    assert trained.newer_weights().version == 9
    assert trained.newer_weights() is None


def test_checkpoints_that_all_are_damaged_are_an_error_and_the_next_one_is_not(tmp_path):
    run = saved_run(tmp_path / "run")
    trained = TrainedAgent(tmp_path / "run")
    save(run, updates=9)
    for folder in run.run_dir.checkpoints_dir.iterdir():
        damage(folder)
    with pytest.raises(CheckpointError, match="no checkpoint can be loaded"):
        trained.newer_weights()
    save(run, updates=11)
    assert trained.newer_weights().version == 11


def test_weights_of_other_settings_are_one_line(tmp_path):
    saved_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="its checkpoint does not fit its settings") as error:
        TrainedAgent(tmp_path / "run", ["qt-tdm.tdm.embed_dim=32"])
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_are_named(tmp_path):
    run = saved_run(tmp_path / "run", agent="tdm")
    checkpoint = run.loop.store.load_latest()
    networks = torch.nn.ModuleDict({"tdm": run.learner.networks["tdm"], "qt": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"got nothing as qt/network/weight, want \[2, 2\]"):
        weights_in(checkpoint, networks)
    checkpoint.tensors["tdm/network/table"] = torch.zeros(1)  # of a version that had one
    with pytest.raises(ValueError, match="got tdm/network/table, which these networks have not"):
        weights_in(checkpoint, torch.nn.ModuleDict({"tdm": run.learner.networks["tdm"]}))


@pytest.mark.parametrize("what", ["nowhere", "run"])
def test_no_run_and_no_checkpoint_are_one_line(tmp_path, what):
    new_run(tiny_config(), RunDir.create(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"not a run directory|there is no checkpoint in it yet"):
        TrainedAgent(tmp_path / what)
