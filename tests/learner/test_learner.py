"""learner/learner.py: one gradient step of everything, again and again, stopped and gone on with."""

import copy
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qttdm.common.batch import Batch
from qttdm.common.models.qt import QT, QTConfig
from qttdm.common.models.tdm import TDM, TDMConfig
from qttdm.learner.learner import Learner, LearnerConfig, NonFiniteLossError
from qttdm.learner.parts.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.parts.qt import QTLearner, QTLearnerConfig
from qttdm.learner.parts.tdm import TDMLearner, TDMLearnerConfig

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())["updates"]
CPU = torch.device("cpu")
M, N, L = 4, 3, 5


def make_batch(size: int = 8, steps: int = L, obs_dim: int = M, action_dim: int = N, seed: int = 0) -> Batch:
    """Windows of a linear system, half of them ending inside the window, half of those by termination."""
    rng = np.random.default_rng(seed)
    lengths = np.where(np.arange(size) % 2 == 0, steps, rng.integers(1, steps + 1, size))
    mask = np.arange(steps) < lengths[:, None]
    terminated = np.zeros((size, steps), bool)
    terminated[np.arange(1, size, 4), lengths[1::4] - 1] = True
    actions = rng.uniform(-1, 1, (size, steps, action_dim)).astype(np.float32)
    observations = np.zeros((size, steps + 1, obs_dim), np.float32)
    observations[:, 0] = rng.normal(size=(size, obs_dim))
    change, push = rng.normal(size=(obs_dim, obs_dim)) / obs_dim**0.5, rng.normal(size=(action_dim, obs_dim))
    for t in range(steps):
        observations[:, t + 1] = 0.5 * observations[:, t] @ change + actions[:, t] @ push
    rewards = observations[:, :-1].mean(axis=-1) + actions.mean(axis=-1)
    to_go = np.stack([(rewards * mask)[:, t:] @ 0.9 ** np.arange(steps - t) for t in range(steps)], axis=1)
    exists = np.concatenate([np.ones((size, 1), bool), mask], axis=1)
    return Batch(
        observations=observations * exists[:, :, None],
        actions=actions * mask[:, :, None],
        rewards=rewards * mask,
        terminated=terminated,
        mask=mask,
        returns_to_go=(to_go * mask).astype(np.float32),
    )


def make_learner(
    seed: int = 0,
    dropout: float = 0.1,
    total_updates: int = 100,
    awake: bool = False,
    reward_scale: float = 1.0,
    tdm: TDMLearnerConfig | None = None,
    qt: QTLearnerConfig | None = None,
    compile: bool = False,
) -> Learner:
    """Tiny QT-TDM. `awake`: the heads' last layers start away from zero, so that the first update moves everything."""
    torch.manual_seed(seed)
    trunk = {"embed_dim": 16, "num_heads": 2, "num_layers": 2, "bins": 7, "dropout": dropout}
    dynamics = TDM(TDMConfig(window=L, head_dim=16, head_dropout=dropout / 10, **trunk), M, N, can_terminate=True)
    values = QT(QTConfig(**trunk), M, N)
    if awake:
        with torch.no_grad():
            for head in (dynamics.state_head, dynamics.reward_head, dynamics.continuation_head, *values.heads):
                head[-1].weight.normal_(std=0.3)
    config = LearnerConfig(compile=compile, reward_scale=reward_scale)
    parts = [
        TDMLearner(tdm or TDMLearnerConfig(), dynamics, compile),
        QTLearner(qt or QTLearnerConfig(states_per_window=2), values, 0.9, compile),
    ]
    return Learner(config, parts, CPU, total_updates, bfloat16=False)


def part(learner: Learner, name: str) -> QTLearner:
    (found,) = [p for p in learner.parts if p.name == name]
    return found


def parameters_of(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in (*learner.networks.parameters(), *part(learner, "qt").target.parameters())]


def saved(learner: Learner) -> dict[str, Tensor]:
    """The state as a checkpoint holds it: tensors of its own."""
    return copy.deepcopy(learner.state())


def test_losses_reproduce_the_golden_ones():
    """Dropout is off: its masks come from other generators on other processors."""
    fast = {"learning_rate": 0.01, "schedule": "linear"}
    learner = make_learner(
        GOLDEN["seed"],
        dropout=0.0,
        total_updates=10,
        awake=True,
        reward_scale=0.5,
        tdm=TDMLearnerConfig(**fast),
        qt=QTLearnerConfig(**fast, states_per_window=2, ema_coefficient=0.3, ema_every=2, monte_carlo_clamp=True),
    )
    for want in GOLDEN["metrics"]:
        learner.update(make_batch(seed=GOLDEN["seed"]))
        got = learner.drain()
        assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-4)


def test_it_overfits_one_batch():
    learner = make_learner(
        dropout=0.0,
        tdm=TDMLearnerConfig(learning_rate=3e-3),
        qt=QTLearnerConfig(learning_rate=3e-3, ema_coefficient=0.1, ema_every=1),
    )
    batch = make_batch()
    learner.update(batch)
    first = learner.drain()
    for _ in range(300):
        learner.update(batch)
    rows = []
    for _ in range(20):  # the median: Adam spikes now and then, at other updates on other processors
        learner.update(batch)
        rows.append(learner.drain())
    last = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    constant = 0.5 * np.log(2 * np.pi)
    assert last["loss_state"] < first["loss_state"] / 50
    assert last["loss_reward"] - constant < (first["loss_reward"] - constant) / 50
    assert last["loss_continuation"] < first["loss_continuation"] / 50
    assert last["loss_q"] < first["loss_q"] / 20


def test_a_part_may_stand_alone():
    both, batch = make_learner(dropout=0.0), make_batch()
    both.update(batch)
    want = both.drain()
    for name in ("tdm", "qt"):
        alone = Learner(both.config, [part(make_learner(dropout=0.0), name)], CPU, 100, bfloat16=False)
        alone.update(batch)
        got = alone.drain()
        assert 0 < len(got) < len(want)
        assert got == {key: want[key] for key in got}


def test_targets_carry_no_dropout_noise():
    # The target never follows here: identical input must give identical targets, while the loss's own pass is noisy.
    learner = make_learner(dropout=0.5, awake=True, qt=QTLearnerConfig(learning_rate=1e-30, ema_every=10**6))
    batch, seen, losses = make_batch(), set(), set()
    for _ in range(5):
        learner.update(batch)
        metrics = learner.drain()
        seen.add(metrics["q_target_mean"])
        losses.add(metrics["loss_q"])
    assert len(seen) == 1
    assert seen != {0.0}
    assert len(losses) == 5
    qt = part(learner, "qt")
    assert qt.network.training
    assert not any(module.training for module in qt.target.modules())


def test_the_target_learns_only_by_following():
    learner = make_learner(awake=True, qt=QTLearnerConfig(ema_every=10**6))
    before = [p.clone() for p in part(learner, "qt").target.parameters()]
    for _ in range(3):
        learner.update(make_batch())
    for got, want in zip(part(learner, "qt").target.parameters(), before, strict=True):
        assert not got.requires_grad
        assert torch.equal(got, want)


@pytest.mark.parametrize("every", [1, 3])
def test_the_target_follows_every_few_updates_by_the_coefficient(every: int):
    zeta = 0.25
    learner = make_learner(awake=True, qt=QTLearnerConfig(learning_rate=0.01, ema_coefficient=zeta, ema_every=every))
    qt = part(learner, "qt")
    for update in range(1, 8):
        before = [p.clone() for p in qt.target.parameters()]
        learner.update(make_batch(seed=update))
        now = update % every == 0
        for old, new, network in zip(before, qt.target.parameters(), qt.network.parameters(), strict=True):
            torch.testing.assert_close(new, (1 - zeta) * old + zeta * network if now else old, rtol=1e-5, atol=1e-7)
        moved = any(not torch.equal(old, new) for old, new in zip(before, qt.target.parameters(), strict=True))
        assert moved == now


def test_target_values_are_clamped_by_scaled_returns_to_go():
    batch = make_batch()
    batch["returns_to_go"][:, :2] = 40.0  # above any target
    qt = QTLearnerConfig(states_per_window=2, monte_carlo_clamp=True)
    learner = make_learner(reward_scale=0.5, qt=qt)
    learner.update(batch)
    assert learner.drain()["q_target_mean"] == pytest.approx(20.0)
    learner = make_learner(reward_scale=0.5)  # without the clamp they are not looked at
    learner.update(batch)
    assert abs(learner.drain()["q_target_mean"]) < 5


def test_reward_scale_is_rewards_scaled():
    batch = make_batch()
    scaled = batch | {"rewards": 0.5 * batch["rewards"], "returns_to_go": 0.5 * batch["returns_to_go"]}
    clamp = QTLearnerConfig(monte_carlo_clamp=True)
    results = []
    for scale, given in ((0.5, batch), (1.0, scaled)):
        learner = make_learner(reward_scale=scale, qt=clamp)
        for _ in range(3):
            learner.update(given)
        results.append((learner.drain(), parameters_of(learner)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(one, other) for one, other in zip(results[0][1], results[1][1], strict=True))
    assert (batch["rewards"] == make_batch()["rewards"]).all()  # scaled in a copy


def make_step(**config) -> tuple[AdamStep, nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    defaults = {"learning_rate": 0.1, "max_grad_norm": 1.0, "weight_decay": 0.0}
    return AdamStep(OptimizerConfig(**(defaults | config)), layer), layer


def test_linear_schedule():
    step, layer = make_step(schedule="linear")
    assert [step.learning_rate(p) for p in (0.0, 0.25, 0.5, 1.0, 1.5)] == pytest.approx([0.1, 0.075, 0.05, 0.0, 0.0])
    before = layer.weight.clone()
    layer(torch.ones(3)).sum().backward()
    step.step(progress=0.75)
    # Adam's first step is the learning rate for every parameter that has a gradient (less eps / |gradient|)
    torch.testing.assert_close(before - layer.weight, torch.full((2, 3), 0.025), rtol=1e-3, atol=0)
    before = layer.weight.clone()
    step.clear()
    layer(torch.ones(3)).sum().backward()
    step.step(progress=1.0)
    assert torch.equal(layer.weight, before)


def test_constant_schedule():
    step, _ = make_step()
    assert {step.learning_rate(p) for p in (0.0, 0.5, 1.0, 2.0)} == {0.1}


def test_the_learner_reaches_a_learning_rate_of_zero_at_its_last_update():
    learner = make_learner(total_updates=4, tdm=TDMLearnerConfig(learning_rate=0.4, schedule="linear"))
    rates = []
    for _ in range(6):
        learner.update(make_batch())
        rates.append(part(learner, "tdm").optimizer.adam.param_groups[0]["lr"])
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    assert part(learner, "qt").optimizer.adam.param_groups[0]["lr"] == 3e-4


def test_a_cosine_ends_at_zero_flat():
    step = AdamStep(OptimizerConfig(learning_rate=0.1, max_grad_norm=1.0, schedule="cosine"), nn.Linear(2, 2))
    rates = [step.learning_rate(progress) for progress in (0.0, 1 / 3, 0.5, 1.0, 2.0)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.0, 0.0])


def slow_adam_step(parameters: list[Tensor], gradients: list[Tensor], rate: float, limit: float) -> list[Tensor]:
    """The first step of Adam from zero moments, on gradients whose common norm is limited."""
    norm = sum(g.square().sum() for g in gradients).sqrt()
    clipped = [g * min(1.0, limit / norm.item()) for g in gradients]
    return [p - rate * g / (g.square().sqrt() + 1e-5) for p, g in zip(parameters, clipped, strict=True)]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1000.0])
def test_the_norm_is_reported_before_clipping_and_the_step_is_of_the_clipped_gradient(scale: float):
    # Adam forgets the gradient's scale, but for eps = 1e-5: the limit is set so low that eps shows it.
    limit = 1e-4
    step, layer = make_step(max_grad_norm=limit)
    x = torch.tensor([1.0, -2.0, 3.0])
    before = [p.detach().clone() for p in layer.parameters()]
    gradients = [g.detach() for g in torch.autograd.grad(scale * layer(x).square().sum(), list(layer.parameters()))]
    (scale * layer(x).square().sum()).backward()
    norm = step.step(progress=0.0)
    want = sum(g.square().sum().item() for g in gradients) ** 0.5
    assert norm.item() == pytest.approx(want, rel=1e-5)
    assert (want > limit) == (scale > 1e-6)
    for got, expected in zip(layer.parameters(), slow_adam_step(before, gradients, 0.1, limit), strict=True):
        torch.testing.assert_close(got.detach(), expected, rtol=1e-3, atol=1e-5)


def test_every_parameter_that_is_used_moves():
    learner = make_learner(awake=True)
    before = {name: p.detach().clone() for name, p in learner.networks.named_parameters()}
    learner.update(make_batch())
    still = {name for name, p in learner.networks.named_parameters() if torch.equal(p, before[name])}
    assert still == set()


def test_drain_gives_means_and_forgets():
    batches, metrics = [make_batch(seed=seed) for seed in range(4)], []
    learner = make_learner()
    assert learner.drain() == {}
    for batch in batches:
        learner.update(batch)
        metrics.append(learner.drain())
    assert learner.drain() == {}
    learner = make_learner()
    for batch in batches:
        learner.update(batch)
    together = learner.drain()
    assert set(together) == set(metrics[0])
    assert together.pop("target_drift") == pytest.approx(metrics[-1]["target_drift"], rel=1e-5)  # as of now
    for name, value in together.items():
        assert value == pytest.approx(np.mean([row[name] for row in metrics]), rel=1e-5), name


def test_q_is_compared_with_what_followed():
    """Against the slow way: Q of the bins taken, both heads' mean; the largest of the states that are there."""
    batch = make_batch()
    batch["mask"][1, 1:] = False
    batch["returns_to_go"][1, 1] = 1e6  # padding
    learner = make_learner(dropout=0.0, awake=True, reward_scale=0.5, qt=QTLearnerConfig(states_per_window=2))
    qt, want = part(learner, "qt").network, []
    for window in range(len(batch["rewards"])):
        for step in range(2):
            if batch["mask"][window, step]:
                bins = qt.tokenizer.encode(torch.from_numpy(batch["actions"][window, step]))[None]  # [1, N]
                q = qt(
                    torch.from_numpy(batch["observations"][window, step])[None], qt.tokenizer.decode(bins[:, :-1])
                ).detach()  # [2, 1, N, K]
                taken = [float(q[:, 0, n, bins[0, n]].mean()) for n in range(N)]
                want.append((taken, 0.5 * float(batch["returns_to_go"][window, step])))
    learner.update(batch)
    got = learner.drain()
    assert got["q_max"] == pytest.approx(max(max(taken) for taken, _ in want), rel=1e-4)
    assert got["q_mean"] == pytest.approx(np.mean([taken for taken, _ in want]), rel=1e-4)
    assert got["replayed_return"] == pytest.approx(np.mean([later for _, later in want]), rel=1e-4)


def test_target_drift_is_the_targets_distance_over_the_networks_norm():
    learner = make_learner(qt=QTLearnerConfig(ema_every=10**6))
    for update in range(3):
        learner.update(make_batch(seed=update))
    qt = part(learner, "qt")
    pairs = list(zip(qt.network.parameters(), qt.target.parameters(), strict=True))
    distance = sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5
    norm = sum(float(a.detach().square().sum()) for a, _ in pairs) ** 0.5
    assert learner.drain()["target_drift"] == pytest.approx(distance / norm, rel=1e-4)
    assert distance > 0
    alone = Learner(learner.config, [part(learner, "tdm")], CPU, 100, bfloat16=False)
    alone.update(make_batch())
    assert "target_drift" not in alone.drain()


def test_compiled_it_learns_the_same(monkeypatch):
    """Both losses captured whole, forwards and backwards, and run by torch as they stand."""
    backend = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", backend)
    plain, compiled = (make_learner(dropout=0.0, awake=True, compile=compile) for compile in (False, True))
    for update in range(6):
        for learner in (plain, compiled):
            learner.update(make_batch(seed=update))
    want, got = plain.drain(), compiled.drain()
    assert got == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in want.items()}
    for a, b in zip(parameters_of(plain), parameters_of(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_compiled_it_drops_out_too(monkeypatch):
    """Masks are drawn inside what is compiled: new ones for each update, none when nothing is to be dropped."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for dropout, different in ((0.5, 3), (0.0, 1)):
        whole = make_learner(dropout=dropout, awake=True, compile=True)
        batch = whole._stage(make_batch())
        losses = {round(part(whole, "tdm").loss(batch).state.item(), 5) for _ in range(3)}
        assert len(losses) == different


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU's host would wait: their result is a number, or decides a shape."""

    WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket is torch.ops.aten.index and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.count += func.overloadpacket in self.WAITING or by_mask
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any())])
def test_the_watch_sees_a_wait(wait):
    with Waits() as waits:
        wait(torch.ones(3))
    assert waits.count == 1


def test_updates_never_wait_for_the_device():
    learner = make_learner(qt=QTLearnerConfig(ema_every=2, monte_carlo_clamp=True))
    batch = make_batch()
    with Waits() as waits:
        for _ in range(4):
            learner.update(batch)
    assert waits.count == 0


@pytest.mark.parametrize("drained_at", [None, 2])
def test_a_loss_that_is_not_finite_is_named_with_its_update(drained_at: int | None):
    learner = make_learner()
    for update in range(1, 8):
        batch = make_batch(seed=update)
        if update == 4:
            batch["rewards"][0, L - 1] = np.nan  # beyond the first states' n steps: only the TDM sees it
        learner.update(batch)
        if update == drained_at:
            learner.drain()
    with pytest.raises(NonFiniteLossError) as caught:
        learner.drain()
    message = str(caught.value)
    assert message.endswith("at update 4")
    assert "loss_reward" in message
    assert "loss_q" not in message
    assert "loss_state" not in message


def test_a_value_that_is_not_finite_is_named_too():
    learner = make_learner()
    batch = make_batch()
    batch["rewards"][0, 0] = np.inf
    learner.update(batch)
    with pytest.raises(NonFiniteLossError, match=r"loss_q.* at update 1$"):
        learner.drain()


@pytest.mark.parametrize("stop_at", [0, 5])
def test_stopping_and_going_on_changes_not_one_bit(stop_at: int):
    batches = [make_batch(seed=seed) for seed in range(10)]
    settings = {
        "tdm": TDMLearnerConfig(schedule="linear"),
        "qt": QTLearnerConfig(ema_every=3, ema_coefficient=0.2, states_per_window=2),
    }
    whole = make_learner(**settings)
    for batch in batches[:stop_at]:
        whole.update(batch)
    whole.drain()
    state = saved(whole)
    for batch in batches[stop_at:]:
        whole.update(batch)
    want = whole.drain()

    other = make_learner(seed=77, **settings)  # other weights, another place in the random stream
    torch.rand(13)
    other.load_state(state)
    assert other.updates == stop_at
    for batch in batches[stop_at:]:
        other.update(batch)
    assert other.drain() == want
    for one, two in zip(parameters_of(other), parameters_of(whole), strict=True):
        assert torch.equal(one, two)
    ours, theirs = other.state(), whole.state()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_another_s_networks_are_taken_and_its_optimiser_is_not():
    batch, other, learner = make_batch(), make_learner(seed=7), make_learner()
    for _ in range(5):
        other.update(batch)
    learner.start_from(saved(other))
    for one, two in zip(parameters_of(learner), parameters_of(other), strict=True):
        assert torch.equal(one, two)
    assert learner.updates == 0
    assert not [name for name in learner.state() if "/adam/" in name]


def test_an_exported_agent_s_target_begins_as_its_network():
    other, learner = make_learner(seed=7), make_learner()
    learner.start_from({name: tensor for name, tensor in saved(other).items() if "/network/" in name})
    qt = part(learner, "qt")
    for one, two in zip(qt.target.parameters(), part(other, "qt").network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_networks_of_another_size_are_named():
    state = saved(make_learner(seed=7))
    with pytest.raises(ValueError, match=r"^got tdm/network/table, which these networks have not$"):
        make_learner().start_from(state | {"tdm/network/table": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^got nothing as tdm/network/\S+, want \[\d+"):
        make_learner().start_from({name: tensor for name, tensor in state.items() if not name.startswith("tdm")})
    with pytest.raises(ValueError, match=r"^got \[1\] as tdm/network/\S+, want \[\d+"):
        make_learner().start_from({name: torch.zeros(1) for name in state})
    with pytest.raises(ValueError, match=r"^got \[1\] as qt/target/\S+, want \[\d+"):
        make_learner().load_state(state | {name: torch.zeros(1) for name in state if "target" in name})


def test_bfloat16_leaves_parameters_in_float32_and_losses_where_they_were():
    learner, narrow, batch = make_learner(dropout=0.0, awake=True), make_learner(dropout=0.0, awake=True), make_batch()
    narrow.bfloat16 = True
    for one in (learner, narrow):
        one.update(batch)
    assert all(p.dtype == torch.float32 for p in parameters_of(narrow))
    want, got = learner.drain(), narrow.drain()
    assert got != want
    assert got == pytest.approx(want, rel=0.05, abs=0.02)


def test_seeds_decide_everything():
    def run(seed: int) -> list[Tensor]:
        learner = make_learner(seed)
        for k in range(3):
            learner.update(make_batch(seed=k))
        return parameters_of(learner)

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_weights_are_those_of_now():
    learner = make_learner()
    before = learner.weights()
    learner.update(make_batch())
    after = learner.weights()
    assert (before.version, after.version) == (0, 1)
    assert not np.array_equal(before.values, after.values)
    after.copy_into(make_learner(seed=5).networks)
    assert after.values.size == sum(p.numel() for p in learner.networks.parameters())


class LargestResult(TorchDispatchMode):
    """Remembers the size of the largest memory that any operation returned, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.device.type == "cpu":
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


def test_an_update_of_the_paper_s_shape_stays_within_its_activations():
    """L=20, K=256, D=256 and N=6, a batch of 2. What waits for the backward pass is at most twice, in numbers:

    parameters + tokens * layers * (16 D + 3 * heads * tokens of a window) + steps * heads' layers * 3 * width,
    16 D: two norms and their inputs (4), queries, keys and values (3), attention's output (1), the MLP's (8);
    3: attention weights, their mask, and both together. Nothing has K times the size of the tokens.
    """
    batch_size, window, action_dim, obs_dim = 2, 20, 6, 24
    torch.manual_seed(0)
    c, q = TDMConfig(), QTConfig()
    tdm, qt = TDM(c, obs_dim, action_dim, can_terminate=False), QT(q, obs_dim, action_dim)
    parts = [TDMLearner(TDMLearnerConfig(), tdm), QTLearner(QTLearnerConfig(), qt, 0.98)]
    learner = Learner(LearnerConfig(), parts, CPU, 10, bfloat16=False)
    batch = make_batch(batch_size, window, obs_dim, action_dim)

    parameters = sum(p.numel() for p in learner.networks.parameters())
    per_window = window * (action_dim + 1)
    tdm_layer = batch_size * per_window * (16 * c.embed_dim + 3 * c.num_heads * per_window)
    qt_layer = batch_size * action_dim * (16 * q.embed_dim + 3 * q.num_heads * action_dim)
    heads = batch_size * window * 2 * c.head_layers * 3 * c.head_dim
    values = 2 * batch_size * action_dim * (q.bins + 2 * q.embed_dim)
    numbers = parameters + c.num_layers * tdm_layer + q.num_layers * qt_layer + heads + values

    kept: dict[int, Tensor] = {}  # by memory: several operations may keep one tensor

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    largest = LargestResult()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), largest:
        learner.update(batch)
    waiting = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert 4 * parameters < waiting < 2 * 4 * numbers
    # The published look-up makes [B, L, N, K, D]: 63 million numbers even here.
    expanded = 4 * batch_size * window * action_dim * c.bins * c.embed_dim
    assert largest.bytes < expanded / 20
    biggest_parameter = max(p.nbytes for p in learner.networks.parameters())
    attention = 4 * batch_size * c.num_heads * per_window**2
    assert largest.bytes <= max(biggest_parameter, 4 * batch_size * per_window * 4 * c.embed_dim, attention)
