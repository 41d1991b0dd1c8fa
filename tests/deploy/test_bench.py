"""The operation counts against torch's own counter, and the benchmark's options."""

import functools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qttdm.common.environments.task_env import TaskSpec
from qttdm.deploy import bench, bench_economies, operations
from qttdm.deploy.agent import make_learner, make_policy
from qttdm.learner.arithmetic import cpu_threads
from qttdm.planner_service.planner import Planner
from tests.fakes import tiny_config

CPU = torch.device("cpu")
LAYERS = ["tdm={num_layers: 2, head_layers: 2}", "qt.num_layers=2", "planner={horizon: 3, iterations: 3}"]
ATTENTION = {"aten.bmm", "aten.baddbmm"}


def counted(action):
    """Operations that torch executes: of linear layers, and of attention."""
    with FlopCounterMode(display=False) as counter:
        action()
    by_operator = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for operator, count in by_operator.items() if operator in ATTENTION)
    return counter.get_total_flops() - attention, attention


def compare(got, macs):
    """Linear layers to the operation. Attention: the counter counts the whole square of queries and keys, the formula
    the pairs that causality allows, which are more than half of it. Neither counts embedding lookups: they multiply
    nothing. Attention is a small part, so that all in all the two are within 10 %.
    """
    linear, attention = got
    assert linear == 2 * macs.linear
    assert macs.attention <= attention / 2 <= 2 * macs.attention
    assert linear + attention == pytest.approx(macs.flops, rel=0.1)


@pytest.mark.parametrize("action_dim", [1, 2, 3])
@pytest.mark.parametrize(
    "override",
    [
        "agent=tdm",
        "agent=qt-tdm",
        "planner.terminal_value=first_dimension",
        "planner.keep_elites=2",
        "planner.horizon=1",
        "planner.sample_decay=1.5",
    ],
)
def test_operations_of_a_decision(action_dim, override):
    layers = [x.replace("horizon: 3, ", "") if "horizon" in override else x for x in LAYERS]
    c = tiny_config(*layers, override)
    policy = make_policy(c, TaskSpec(3, action_dim, 8, 80, terminates=False, has_success=False), CPU)
    # As it is without inference mode, in which the counter takes some linear layers for attention's batched products.
    policy.planner.plan = functools.partial(Planner.plan.__wrapped__, policy.planner)
    policy.begin([0, 1], 1.0)
    with torch.no_grad():
        got = counted(lambda: policy.act(np.zeros((2, 3), np.float32)))
    compare(got, operations.decision_macs(c, 3, action_dim, environments=2))


@pytest.mark.parametrize("action_dim", [1, 2, 3])
@pytest.mark.parametrize("override", ["agent=tdm", "agent=qt", "learner.qt.states_per_window=2", "qt.dropout=0"])
def test_operations_of_an_update(action_dim, override):
    c = tiny_config(*LAYERS, override)
    learner = make_learner(c, TaskSpec(3, action_dim, 8, 80, terminates=False, has_success=False), CPU)
    batch = bench.random_batch(c, 3, action_dim, 8)
    compare(counted(lambda: learner.update(batch)), operations.update_macs(c, 3, action_dim, 8))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--device", "typo"], ["device=typo"]),
        (["--only", "typo"], ["--only typo", *(shape.name for shape in bench.SHAPES)]),
        (["--threads", "0"], ["--threads 0"]),
        (["--run", "nowhere"], ["nowhere", "not a run"]),
        (["--run", "nowhere", "--only", "laptop N"], ["--only laptop N", "exact", "as trained", "fast"]),
        (["--start", "3"], ["--start 3", "--run"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, names, capsys):
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(name in error for name in names)


@pytest.mark.parametrize(("arguments", "want"), [([], 1), (["--threads", "2"], 2)])
def test_a_shape_runs_on_its_presets_threads_and_is_held_against_as_many(arguments, want, capsys, monkeypatch):
    measured, used = [], []
    monkeypatch.setattr(bench, "product_rate", lambda device, dtype, threads: measured.append(threads) or 1e9)
    for module in (bench, bench_economies):
        monkeypatch.setattr(module, "time_decision", lambda *_, **__: used.append(torch.get_num_threads()) or 1.0)
    monkeypatch.setattr(bench, "time_update", lambda *_: used.append(torch.get_num_threads()) or 1.0)
    with cpu_threads(3):
        assert bench.main(["--device", "cpu", "--only", "laptop", *arguments]) == 0
        assert torch.get_num_threads() == 3
    assert set(measured) == set(used) == {want}
    shown = capsys.readouterr().out
    assert f"float32{want:8}" in shown
    assert "early_stop: not here" in shown
