"""`qttdm export`: the graph acts as the policy, in the real ONNX Runtime and in torch, whatever the batch."""

import numpy as np
import onnxruntime
import pytest
import torch

from qttdm.common.extras import EXTRAS
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.dry_run import noise
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.planner_service.policies.greedy import GreedyPolicy, greedy_beside
from tests.fakes import randomise, tiny_config

UNITS = "gym/Reacher-v5"  # two torques in [-1, 1]
WIDE = "gym/Pendulum-v1"  # one in [-2, 2]
LEGS = "gym/HalfCheetah-v5"  # six
GAME = "minatar/breakout"  # three choices, by images


def saved(folder, agent, task, *more):
    run = new_run(tiny_config("env={episode_steps: 100}", *more, task=task, agent=agent), RunDir.create(folder))
    randomise(run.learner.networks)
    run.learner.updates = 1
    run.loop.store.save(10, run.learner.state(), {"counters": {}}, {})
    return folder


def acts(path, form):
    """What the file does with observations [B, M]."""
    if form == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda shown: session.run(None, {"observations": shown})[0]
    module = torch.export.load(path).module()
    return lambda shown: module(torch.from_numpy(shown)).numpy()


@pytest.mark.parametrize(
    ("agent", "task", "form", "more"),
    [
        ("qt", LEGS, "onnx", ()),
        ("qt-tdm", WIDE, "onnx", ()),
        ("qt", WIDE, "torch-export", ()),
        ("iql", WIDE, "onnx", ()),
        ("twm", WIDE, "onnx", ()),
        ("twm", GAME, "onnx", ()),
        ("twm", GAME, "torch-export", ()),
        ("qt", UNITS, "onnx", ("qt.qt.interpolate=true", "qt.qt.normalise=true")),
    ],
)
def test_acts_as_the_original_on_any_batch(tmp_path, capsys, agent, task, form, more):
    run = saved(tmp_path / "run", agent, task, *more)
    assert main(["export", str(run), "--format", form, "--out", str(tmp_path / "policy")]) == 0
    said = capsys.readouterr().out
    assert ("this is the policy without the planner" in said) == (agent == "qt-tdm")
    trained = TrainedAgent(run)
    policy = trained.policy if isinstance(trained.policy, GreedyPolicy) else greedy_beside(trained.policy)
    exported = acts(tmp_path / "policy", form)
    for batch in (1, 3, 50):
        observed = trained.data.observations["observations"]
        shown = noise(np.random.default_rng(batch), (batch, *observed.shape), observed.dtype)
        bare = policy.decide([policy.start(0, 0.0) for _ in shown], {"observations": shown}).actions
        want = 2.0 * bare if task == WIDE else bare
        together = np.concatenate([shown] * trained.data.stack, axis=-1)
        assert np.allclose(exported(together), want, rtol=0, atol=1e-5)
    assert len(np.unique(want)) > 1


def test_an_agent_that_cannot_act_without_a_planner(tmp_path, capsys):
    run = saved(tmp_path / "run", "tdm", WIDE)
    assert main(["export", str(run)]) == 2
    assert capsys.readouterr().err == (
        "qttdm: agent=tdm has no policy without a planner; want a run of qt-tdm, qt, iql or twm\n"
    )
    assert not (run / "policy.onnx").exists()


def test_missing_packages_are_named(tmp_path, capsys, monkeypatch):
    run = saved(tmp_path / "run", "qt", WIDE)
    monkeypatch.setitem(EXTRAS, "export", ("onnx", "no_such_package"))
    assert main(["export", str(run)]) == 2
    assert capsys.readouterr().err == "qttdm: --format onnx needs no_such_package: pip install 'qttdm[export]'\n"
