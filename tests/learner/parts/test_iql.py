"""learner/parts/iql.py against loops, closed forms, and value iteration."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from qttdm.common.batch import Batch
from qttdm.common.models.iql import IQL, IQLConfig
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.iql import IQLActorConfig, IQLLearner, IQLLearnerConfig, IQLOptimizerConfig
from qttdm.learner.parts.losses import expectile_loss
from tests.fakes import randomise

CPU = torch.device("cpu")
GAMMA = 0.9
B, L, M, N = 5, 3, 4, 2


def make_batch(seed: int = 0) -> Batch:
    """Windows of noise, the first of them whole, the others cut off somewhere, some by termination."""
    rng = np.random.default_rng(seed)
    lengths = np.append(L, rng.integers(1, L + 1, B - 1))
    mask = np.arange(L) < lengths[:, None]
    terminated = (np.arange(L) == lengths[:, None] - 1) & (np.arange(B) % 2 == 0)[:, None]
    return Batch(
        observations=rng.normal(size=(B, L + 1, M)).astype(np.float32),
        actions=rng.uniform(-1, 1, (B, L, N)).astype(np.float32),
        rewards=rng.normal(size=(B, L)).astype(np.float32),
        terminated=terminated,
        mask=mask,
        returns_to_go=rng.normal(size=(B, L)).astype(np.float32),
    )


def make_part(**config) -> IQLLearner:
    torch.manual_seed(0)
    network = IQL(IQLConfig(width=8), M, N)
    return IQLLearner(IQLLearnerConfig(**config), network, GAMMA)


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_minimum_of_the_loss_is_the_expectile(tau, share):
    """Of 1 with that share and else 0 it is tau p / (tau p + (1 - tau) (1 - p))."""
    targets = (torch.arange(10) < 10 * share).double()
    best = torch.tensor(tau * share / (tau * share + (1 - tau) * (1 - share)), dtype=torch.double, requires_grad=True)
    loss = expectile_loss(targets - best, tau)
    loss.sum().backward()
    assert best.grad == pytest.approx(0.0, abs=1e-6)
    want = [(tau if t > best else 1 - tau) * (t - best.item()) ** 2 for t in targets.tolist()]
    assert loss.tolist() == pytest.approx(want)


def slow_losses(part: IQLLearner, batch: Batch) -> dict[str, float]:
    """One transition after the other."""
    c, net, sums, count = part.config, part.network, {"value": 0.0, "critic": 0.0, "policy": 0.0}, 0
    scale = net.reward_scale.item()

    def v(observation: np.ndarray) -> float:
        return net.values(net.scale(torch.from_numpy(observation))).item()

    for b in range(B):
        for t in range(int(batch["mask"][b].sum())):
            seen, action = batch["observations"][b], torch.from_numpy(batch["actions"][b, t])
            state = net.scale(torch.from_numpy(seen[t]))
            q = min(part.target(state, action).tolist())
            goes_on = 0.0 if batch["terminated"][b, t] else GAMMA
            target = scale * batch["rewards"][b, t] + goes_on * v(seen[t + 1])
            advantage = q - v(seen[t])
            sums["value"] += abs(c.expectile - (advantage < 0)) * advantage**2
            sums["critic"] += sum((own - target) ** 2 for own in net.critics(state, action).tolist())
            normal = torch.distributions.Normal(net.actor.trunk(state).tanh(), net.actor.log_std.exp())
            weight = min(math.exp(c.temperature * advantage), c.largest_weight)
            sums["policy"] -= weight * normal.log_prob(action).sum().item()
            count += 1
    return {f"loss_{name}": total / count for name, total in sums.items()}


def test_the_losses_are_those_of_single_transitions():
    part, batch = make_part(temperature=5.0, largest_weight=2.0), make_batch()
    randomise(part.network)
    randomise(part.target)
    part.network.reward_scale.data.fill_(3.0)
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    values, policy, metrics = part.loss(tensors)
    want = slow_losses(part, batch)
    assert {name: metrics[name].item() for name in want} == pytest.approx(want, rel=1e-4)
    assert values.item() == pytest.approx(want["loss_value"] + want["loss_critic"], rel=1e-4)
    assert policy.item() == pytest.approx(want["loss_policy"], rel=1e-4)
    assert 0 < metrics["advantage_clipped"] < 1


def test_no_loss_moves_what_another_is_measured_against():
    """V moves towards Q, Q towards r + gamma V', and the policy is nobody's business."""
    part = make_part()
    tensors = {name: torch.from_numpy(array) for name, array in make_batch().items()}
    values, policy, _ = part.loss(tensors)
    actor, others = list(part.network.actor.parameters()), [*part.network.values.parameters()]
    others += [*part.network.critics.parameters()]
    assert torch.autograd.grad(values, actor, retain_graph=True, allow_unused=True) == (None,) * len(actor)
    assert torch.autograd.grad(policy, others, retain_graph=True, allow_unused=True) == (None,) * len(others)


class Chain:
    """Five states in a row: left, -1, or right, +1; each step costs 1, leaving on the right pays 10, on the left 2.

    Nobody ever went right in state 2: from there on the logs know the way to the left only.
    """

    STATES, LOGGED = 5, {0: (-1, 1), 1: (-1, 1), 2: (-1,), 3: (-1, 1), 4: (-1, 1)}

    @staticmethod
    def step(state: int, action: int) -> tuple[int | None, float]:
        after = state + action
        return (None, 10.0 if after > 0 else 2.0) if after in (-1, Chain.STATES) else (after, -1.0)

    @classmethod
    def q(cls) -> dict[tuple[int, int], float]:
        """Value iteration over the logged actions."""
        values = [0.0] * cls.STATES
        for _ in range(200):
            q = {}
            for state, actions in cls.LOGGED.items():
                for action in actions:
                    after, reward = cls.step(state, action)
                    q[state, action] = reward + (0.0 if after is None else GAMMA * values[after])
            values = [max(value for (state, _), value in q.items() if state == s) for s in range(cls.STATES)]
        return q

    @classmethod
    def batch(cls) -> Batch:
        """All that is logged."""
        rows = [(s, a, *cls.step(s, a)) for s, actions in cls.LOGGED.items() for a in actions]
        seen = [[np.eye(5)[s], np.eye(5)[s if after is None else after]] for s, _, after, _ in rows]
        return Batch(
            observations=np.array(seen, np.float32),
            actions=np.array([[[a]] for _, a, _, _ in rows], np.float32),
            rewards=np.array([[r] for *_, r in rows], np.float32),
            terminated=np.array([[after is None] for _, _, after, _ in rows]),
            mask=np.ones((len(rows), 1), bool),
            returns_to_go=np.array([[r] for *_, r in rows], np.float32),
        )


def learn_chain(pay: float = 1.0, updates: int = 2_000) -> IQL:
    torch.manual_seed(0)
    network, batch = IQL(IQLConfig(width=32), 5, 1), Chain.batch()
    for name in ("rewards", "returns_to_go"):
        batch[name] = batch[name] * np.float32(pay)
    config = IQLLearnerConfig(
        values=IQLOptimizerConfig(learning_rate=3e-3),
        policy=IQLActorConfig(learning_rate=3e-3),
        expectile=0.99,
        ema_coefficient=0.05,
    )
    part = IQLLearner(config, network, GAMMA)
    learner = Learner(LearnerConfig(), [part], CPU, updates, bfloat16=False)
    learner.prepare(iter([batch]))
    for _ in range(updates):
        learner.update(batch)
    return network.eval()


def valued(network: IQL) -> tuple[dict[tuple[int, int], float], Tensor]:
    """Q of what is logged, and the mean actions [5]."""
    states = torch.eye(5)
    with torch.no_grad():
        q = {(s, a): network.q(states[s : s + 1], torch.tensor([[float(a)]])).item() for s in range(5) for a in (-1, 1)}
        return q, network.act(states).squeeze(1)


def test_on_a_chain_it_finds_value_iterations_q_of_what_is_logged_and_acts_by_it():
    want = Chain.q()
    q, actions = valued(learn_chain())
    for key, value in want.items():
        assert q[key] == pytest.approx(value, abs=0.3), key
    best = [max((a for a in Chain.LOGGED[s]), key=lambda a, s=s: want[s, a]) for s in range(5)]
    assert best == [-1, -1, -1, 1, 1]  # right of the gap only is it worth going right
    assert (actions.sign().tolist(), actions.abs().min() > 0.6) == (best, True)


def test_the_unit_of_rewards_changes_nothing_but_the_unit_of_values():
    (q, actions), (q_in_cents, same_actions) = valued(learn_chain(updates=50)), valued(learn_chain(100.0, updates=50))
    assert {key: 100 * value for key, value in q.items()} == pytest.approx(q_in_cents, rel=1e-3)
    assert torch.allclose(actions, same_actions, atol=1e-3)


def test_rewards_are_scaled_to_returns_that_spread_as_those_of_one_a_step():
    part, batch = make_part(), make_batch()
    part.prepare(iter([batch]))
    seen = batch["returns_to_go"][batch["mask"]]
    assert part.network.reward_scale.item() * np.ptp(seen) == pytest.approx(1 / (1 - GAMMA))
    part, batch["returns_to_go"] = make_part(), np.zeros((B, L), np.float32)
    part.prepare(iter([batch]))
    assert part.network.reward_scale.item() == 1.0  # nothing to tell by


def test_exploring_it_draws_from_its_gaussian():
    network = randomise(IQL(IQLConfig(width=8), M, N), std=0.1)
    state = {"observations": torch.randn(1, M).expand(20_000, -1)}
    which, always = torch.rand(20_000, N), torch.zeros(20_000, N)
    mean = network.act(state["observations"])[0]
    drawn, _ = network.propose(state, always, which, torch.full((20_000,), 1.0))
    assert torch.equal(network.propose(state, always, which, 0.0)[0][0], mean)
    normal = torch.distributions.Normal(mean, network.actor.std)
    for point in (-0.5, 0.0, 0.5):
        got = (drawn < point).float().mean(dim=0)
        assert torch.allclose(got, normal.cdf(torch.full((N,), point)), atol=0.02)
    assert drawn.abs().max() == 1.0
