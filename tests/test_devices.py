"""The path of a GPU without one: planning and both losses on torch's meta device, and CUDA's streams and events faked.

Twins of tests/gpu. On the meta device whatever waits for a result fails, for there is none. Some operations take a
stray CPU tensor there without a word (matrix products, indexing, copies), so a watch on every operation's arguments and
results looks for it.
"""

import contextlib
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qttdm.common.contracts import TaskSpec
from qttdm.common.metrics.gpu import report_gpu
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.weights import Weights
from qttdm.deploy.bench.models import random_batch
from qttdm.deploy.cluster.seed_run import evaluating_policy
from qttdm.deploy.runs.build import make_learner, make_policy
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.stopwatch import Stopwatch
from qttdm.planner_service.planners.mppi import MPPI, MPPIConfig
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.policies.planning import PlanningPolicy
from tests.fakes import tiny_config, tiny_qt, tiny_tdm

CUDA = torch.device("cuda")
META = torch.device("meta")
PLANNER = {"samples": 8, "elites": 4, "qt_samples": 3, "iterations": 2, "horizon": 3}


class OneDevice(TorchDispatchMode):
    """Refuses an operation whose tensors live on several devices; numbers (no dimensions) may live anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor) and x.dim() > 0}
        assert len(devices) < 2, f"{func}: {sorted(devices)}"
        return result


class NoUploads(TorchFunctionMode):
    """Refuses tensors made of Python's numbers: a GPU would be waited for until they are copied there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor), func
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Autocast does not know the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@pytest.mark.parametrize("mixed", [lambda m, c: m @ c, lambda m, c: m[c.long()], lambda m, c: m + c])
def test_the_watch_sees_a_cpu_tensor(mixed):
    with OneDevice(), pytest.raises((AssertionError, RuntimeError)):
        mixed(torch.zeros(2, 2, device=META), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "waits",
    [
        lambda m: m.sum().item(),
        lambda m: bool(m.any()),
        lambda m: m.nonzero(),
        lambda m: m[m > 0],
        lambda m: m.cpu(),
        lambda m: m.tolist(),
        lambda m: m + torch.ones(2).to(m.device),
        lambda m: torch.tensor([1.0, 2.0], device=m.device),
    ],
)
def test_the_watch_sees_what_waits_for_the_device(waits):
    with OneDevice(), NoUploads(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        waits(torch.zeros(2, 2, device=META))


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"keep_elites": 2}, {"execute": "elite"}, {"terminal_value": "first_dimension"}]
)
@pytest.mark.parametrize("action_dim", [1, 2])
def test_planning(explore, options, action_dim):
    values = {name: options[name] for name in ("terminal_value",) if name in options}
    config = MPPIConfig(**PLANNER, **{name: value for name, value in options.items() if name not in values})
    tdm, qt = tiny_tdm(0, action_dim=action_dim).to(META), tiny_qt(0, action_dim=action_dim, **values).to(META)
    planner, environments = MPPI(config, 0.9, action_dim, tdm, qt), 2
    noise = {name: part.to(META) for name, part in planner.draw([torch.Generator()] * environments).items()}
    context = {"observations": torch.empty(environments, 3, device=META)}
    with torch.inference_mode():  # makes its constants
        carry = planner.plan(context, planner.begin(environments, META), noise, explore).carry
    with torch.inference_mode(), OneDevice(), NoUploads():
        plan = planner.plan(context, carry, noise, explore)
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
    spec = TaskSpec(3, action_dim, 8, 80, terminates=True)
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


@pytest.mark.parametrize(
    ("agent", "still"),
    [
        ("mlp", []),
        ("iql", []),
        ("trajectory-transformer", ["trajectory-transformer.model.dropout=0"]),
        ("trajectory-transformer", ["trajectory-transformer.model.dropout=0", "trajectory-transformer.critic=true"]),
        ("generalist", ["generalist.model={shared: true, most_numbers: 8, dropout: 0}"]),
    ],
)
def test_the_other_agents_losses_and_their_gradients(agent, still):
    spec = TaskSpec(3, 2, 8, 80, terminates=True)
    c = tiny_config(*still, agent=agent)
    learner = make_learner(c, spec, torch.device("cpu"))
    batch = {name: torch.from_numpy(array).to(META) for name, array in random_batch(c.make_agent(spec)).items()}
    for part in learner.parts:
        for saved in part.saved.values():
            if isinstance(saved, nn.Module):
                saved.to(META)
        part.loss(batch)  # makes its constants
    with OneDevice():
        for part in learner.parts:
            sum(x for x in tree_leaves(part.loss(batch)) if x.requires_grad).backward()
    assert all(p.grad.device == META for p in learner.networks.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in learner.networks.parameters())


@pytest.mark.parametrize("spec", ["vector", "image"])
def test_a_world_models_losses_and_what_it_imagines(spec):
    image = (6, 6, 2) if spec == "image" else None
    task = TaskSpec(72 if image else 3, 1, 8, 80, terminates=True, choices=4 if image else None, image_shape=image)
    c = tiny_config("twm.world_model.dropout=0", agent="twm")
    learner = make_learner(c, task, torch.device("cpu"))
    batch = {name: torch.from_numpy(array).to(META) for name, array in random_batch(c.make_agent(task)).items()}
    world, acting = learner.parts
    for network in (*learner.networks.values(), world.decoder, world.dynamics, acting.target):
        network.to(META)
    acting.range = acting.range.to(META)
    with OneDevice(), NoUploads():
        if world.network.scale is not None:
            world.network.scale.follow(batch["observations"][:, :-1], batch["mask"])
        loss, _, world.seen = world.loss(batch)
        loss.backward()
        actor, critic, _ = acting.loss(acting.imagine())
        (actor + critic).backward()
    assert all(p.grad.device == META for p in learner.networks.parameters() if p.grad is not None)


class Part:
    """Training of a network, as far as Learner asks for it."""

    name = "part"

    def __init__(self, calls: list) -> None:
        self.network, self.calls = nn.Linear(1, 1), calls

    def update(self, batch, progress):
        self.calls.append(("update", sorted(batch)))
        return {}


@pytest.fixture
def calls(monkeypatch) -> list:
    """What is asked of CUDA, in order, by a process that has none."""
    calls: list = []

    class Stream:
        def __init__(self, device="compute") -> None:
            self.name = "compute" if device == "compute" else "copies"

        def wait_stream(self, other) -> None:
            calls.append(("wait", self.name, other.name))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at: float | None = None
            self.reached = False

        def record(self, stream=None) -> None:
            self.at = 10.0 * len(calls)  # milliseconds
            calls.append(("record", "compute" if stream is None else stream.name, self))

        def query(self) -> bool:
            return self.reached

        def elapsed_time(self, end) -> float:
            assert self.reached
            assert end.reached
            return end.at - self.at

    @contextlib.contextmanager
    def on(stream):
        calls.append(("enter", stream.name))
        yield
        calls.append(("leave", stream.name))

    def to(tensor, device, non_blocking):
        calls.append(("copy", non_blocking))
        return tensor

    def noted(name):
        return lambda tensor, *streams: calls.append((name, *(stream.name for stream in streams))) or tensor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", noted("pin"))
    monkeypatch.setattr(torch.Tensor, "record_stream", noted("keep for"))
    monkeypatch.setattr(nn.Module, "to", lambda module, device: module)
    return calls


def test_a_batch_is_copied_beside_the_updates_under_way(calls):
    learner = Learner(LearnerConfig(), [Part(calls)], CUDA, 1, bfloat16=False)
    learner.update({"rewards": np.ones(2, np.float32), "returns_to_go": np.ones(2, np.float32)})
    assert [call[:2] for call in calls] == [
        *[("pin",)] * 2,
        ("enter", "copies"),
        ("record", "copies"),
        *[("copy", True)] * 2,
        ("record", "copies"),
        ("leave", "copies"),
        ("wait", "compute"),
        *[("keep for", "compute")] * 2,
        ("record", "compute"),
        ("update", ["returns_to_go", "rewards"]),
        ("record", "compute"),
    ]


def test_laps_of_a_gpu_are_reported_once_they_have_ended(calls):
    seconds: list[float] = []
    watch = Stopwatch(CUDA, seconds.append)
    for reached in (2, 2, 0, 0):  # events that the device has come to, when the next lap is queued
        with watch.lap():
            pass
        events = [call[2] for call in calls]
        for event in events[:reached]:
            event.reached = True
    assert seconds == [0.01]
    for event in events:
        event.reached = True
    with watch.lap():
        pass
    assert seconds == [0.01] * 4


@pytest.mark.parametrize(("device", "reported"), [("cuda", [2.0, 8.0, 0.5]), ("cpu", [])])
def test_a_gpus_memory_and_use_are_reported(monkeypatch, device, reported):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 8))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 50)
    telemetry = Telemetry.silent("learner")
    report_gpu(telemetry, torch.device(device))
    assert [value for (name, _), value in telemetry.snapshot().items() if "gpu" in name] == reported


def test_an_evaluator_with_a_gpu_plans_on_it(calls, monkeypatch):
    warmed: list[int] = []
    monkeypatch.setattr(PlanningPolicy, "warm_up", lambda policy, environments: warmed.append(environments))
    spec = TaskSpec(3, 1, 8, 80, terminates=True)
    chosen = []
    for overrides in ([], ["precision=float32"], ["device=cpu"]):
        policy = evaluating_policy(tiny_config("device=auto", "precision=auto", *overrides), spec, lambda: None)
        chosen.append((policy.device.type, policy.bfloat16))
    assert chosen == [("cuda", True), ("cuda", False), ("cpu", False)]
    assert warmed == [tiny_config().training.eval_episodes] * 3


def test_a_compiled_decision_can_be_traced_as_torch_s_compilers_do(monkeypatch):
    """Torch's compilers refuse a graph that enters inference mode: the policy enters it around the graph."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    spec, observations = TaskSpec(3, 1, 8, 80, True, False), {"observations": np.ones((2, 3), np.float32)}
    policy = make_policy(tiny_config("qt-tdm.planner.compile=true"), spec, torch.device("cpu"))
    plain = make_policy(tiny_config(), spec, torch.device("cpu"))
    plain.load(Weights.of(policy.networks, 1))
    for _ in range(2):
        actions = [Lockstep(p, [1, 2], exploration=1.0).act(observations) for p in (policy, plain)]
        np.testing.assert_allclose(*actions, atol=1e-5)


def test_a_compiled_decision_is_one_cuda_graph(calls, monkeypatch):
    compiled: list[dict] = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled.append(how))
    make_policy(tiny_config("qt-tdm.planner.compile=true"), TaskSpec(3, 1, 8, 80, True, False), CUDA)
    assert compiled == [{"mode": "reduce-overhead", "fullgraph": True}]
