"""Nothing computes on two devices at once: planning and both losses on torch's meta device, no GPU needed.

Some operations take a stray CPU tensor there without a word (matrix products, indexing), so a watch on every
operation's arguments looks for it.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qttdm.common.contracts import TaskSpec
from qttdm.deploy.bench.models import random_batch
from qttdm.deploy.runs.build import make_learner
from qttdm.planner_service.planners.mppi import MPPI, MPPIConfig
from tests.fakes import tiny_config, tiny_qt, tiny_tdm

META = torch.device("meta")
PLANNER = {"samples": 8, "elites": 4, "qt_samples": 3, "iterations": 2, "horizon": 3}


class OneDevice(TorchDispatchMode):
    """Refuses an operation whose tensors live on several devices; numbers (no dimensions) may live anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor) and x.dim() > 0}
        assert len(devices) < 2, f"{func}: {sorted(devices)}"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Autocast does not know the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@pytest.mark.parametrize("broken", [lambda m, c: m @ c, lambda m, c: m[c.long()], lambda m, c: m + c])
def test_the_watch_sees_a_cpu_tensor(broken):
    with OneDevice(), pytest.raises((AssertionError, RuntimeError)):
        broken(torch.zeros(2, 2, device=META), torch.zeros(2, 2))


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize(
    "economy", [{}, {"keep_elites": 2}, {"execute": "elite"}, {"terminal_value": "first_dimension"}]
)
@pytest.mark.parametrize("action_dim", [1, 2])
def test_planning(explore, economy, action_dim):
    values = {name: economy[name] for name in ("terminal_value",) if name in economy}
    config = MPPIConfig(**PLANNER, **{name: value for name, value in economy.items() if name not in values})
    tdm, qt = tiny_tdm(0, action_dim=action_dim).to(META), tiny_qt(0, action_dim=action_dim, **values).to(META)
    planner, environments = MPPI(config, 0.9, action_dim, tdm, qt), 2
    noise = {name: part.to(META) for name, part in planner.draw([torch.Generator()] * environments).items()}
    carry = planner.begin(environments, META)
    with OneDevice():
        for _ in range(2):
            plan = planner.plan({"observations": torch.empty(environments, 3, device=META)}, carry, noise, explore)
            carry = plan.carry
    assert plan.actions.shape == (environments, action_dim)
    assert plan.actions.device == META


@pytest.mark.parametrize("states_per_window", [1, 2])
@pytest.mark.parametrize("action_dim", [1, 2])
def test_both_losses_and_their_gradients(action_dim, states_per_window):
    still = [
        "qt-tdm.tdm={dropout: 0, head_dropout: 0}",
        "qt-tdm.qt.dropout=0",
    ]  # masks: tests/common/models/test_dropout.py
    c = tiny_config(
        *still, f"qt-tdm.learner.qt.states_per_window={states_per_window}", "qt-tdm.learner.qt.monte_carlo_clamp=true"
    )
    spec = TaskSpec(3, action_dim, 8, 80, terminates=True, has_success=False)
    learner = make_learner(c, spec, torch.device("cpu"))
    arrays = random_batch(c.make_agent(spec))
    batch = {name: torch.from_numpy(array).to(META) for name, array in arrays.items()}
    for part in learner.parts:
        part.network.to(META)
    learner.parts[1].target.to(META)
    with OneDevice():
        learner.parts[0].loss(batch).total.backward()
        learner.parts[1].loss(batch)[0].backward()
    assert all(p.grad.device == META for p in learner.networks.parameters() if p.grad is not None)
