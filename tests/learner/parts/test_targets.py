"""learner/parts/targets.py against loops, brute force of Eq. 2, and a small MDP whose optimal values are known."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qttdm.common.batch import Batch
from qttdm.common.models.qt import QT, QTConfig
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.qt import QTLearner, QTLearnerConfig
from qttdm.learner.parts.targets import bellman_targets, n_step_returns

GOLDEN = json.loads((Path(__file__).parents[1] / "golden.json").read_text())["targets"]


def slow_n_step(
    rewards: list[float], mask: list[bool], terminated: list[bool], t: int, n: int, discount: float
) -> tuple[float, float, int]:
    """Sum, bootstrap weight and bootstrap index of one state of one window."""
    total, steps, ended = 0.0, 0, False
    while steps < n and t + steps < len(rewards) and mask[t + steps] and not ended:
        total += discount**steps * rewards[t + steps]
        ended = terminated[t + steps]
        steps += 1
    return total, 0.0 if ended else discount**steps, t + steps


def random_windows(count: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, mask and terminated [B, L]: episodes of all lengths, half of them terminating at their last step."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(count, length)).astype(np.float32)
    mask, terminated = np.zeros((2, count, length), bool)
    for b in range(count):
        steps = rng.integers(1, 2 * length)  # half of the episodes go on beyond the window
        mask[b, :steps] = True
        terminated[b, steps - 1 : steps] = rng.random() < 0.5
    return torch.from_numpy(rewards), torch.from_numpy(mask), torch.from_numpy(terminated)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_n_step_returns_equal_a_loop(length: int, n: int):
    rewards, mask, terminated = random_windows(40, length, seed=10 * length + n)
    for states in range(1, length + 1):
        returns, weight, index = n_step_returns(rewards, mask, terminated, states, n, 0.9)
        assert returns.shape == weight.shape == index.shape == (40, states)
        assert index.dtype == torch.int64
        for b, t in itertools.product(range(40), range(states)):
            if not mask[b, t]:
                continue  # no such state: q_loss masks it
            want = slow_n_step(rewards[b].tolist(), mask[b].tolist(), terminated[b].tolist(), t, n, 0.9)
            assert returns[b, t].item() == pytest.approx(want[0], abs=1e-5)
            assert weight[b, t].item() == pytest.approx(want[1], abs=1e-6)
            assert index[b, t].item() == want[2]


def test_n_step_returns_in_the_four_situations():
    rewards = torch.tensor([[1.0, 10.0, 100.0, 1000.0]]).expand(4, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    terminated = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]).bool()
    returns, weight, index = n_step_returns(rewards, mask, terminated, states=1, n=3, discount=0.5)
    assert returns.squeeze(1).tolist() == [1 + 5 + 25, 1 + 5, 1 + 5, 1]
    assert index.squeeze(1).tolist() == [3, 2, 2, 1]  # the observation behind the last reward, final ones included
    # going on, cut off by a time limit, terminated, terminated at once
    assert weight.squeeze(1).tolist() == [0.125, 0.25, 0.0, 0.0]


def test_windows_do_not_see_each_other():
    rewards, mask, terminated = random_windows(10, 5, seed=1)
    whole = n_step_returns(rewards, mask, terminated, 3, 3, 0.9)
    for b in range(10):
        one = slice(b, b + 1)
        for got, want in zip(n_step_returns(rewards[one], mask[one], terminated[one], 3, 3, 0.9), whole, strict=True):
            assert torch.equal(got, want[one])


def test_what_lies_behind_an_episode_s_end_has_no_influence():
    rewards, mask, terminated = random_windows(30, 5, seed=2)
    want = n_step_returns(rewards, mask, terminated, 1, 3, 0.9)
    got = n_step_returns(torch.where(mask, rewards, 1e6), mask, terminated | ~mask, 1, 3, 0.9)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def random_q(count: int, dims: int, bins: int, seed: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    shapes = {"next_dimension_q": (2, count, dims - 1, bins), "bootstrap_q": (2, count, bins), "returns": (count,)}
    arguments = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in shapes.items()}
    arguments["bootstrap_weight"] = torch.from_numpy(rng.choice([0.0, 0.729, 0.81], count))
    return arguments


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_bellman_targets_equal_brute_force_of_equation_2(dims: int, clamp: bool, taken: bool):
    q = random_q(count=20, dims=dims, bins=3, seed=dims)
    returns_to_go = torch.from_numpy(np.random.default_rng(9).normal(1.0, 1.0, 20)) if clamp else None
    got = bellman_targets(**q, returns_to_go=returns_to_go, taken_clamp=taken)
    assert got.shape == (20, dims)

    def best(values: Tensor) -> float:
        """values [2, K]"""
        return max(min(values[0, k].item(), values[1, k].item()) for k in range(3))

    for b in range(20):
        want = [best(q["next_dimension_q"][:, b, dim]) for dim in range(dims - 1)]  # no reward, no discount
        want.append(q["returns"][b].item() + q["bootstrap_weight"][b].item() * best(q["bootstrap_q"][:, b]))
        if taken:
            want = [max(value, want[-1]) for value in want]
        if returns_to_go is not None:
            want = [max(value, returns_to_go[b].item()) for value in want]
        assert got[b].tolist() == pytest.approx(want)
    for b in range(20):  # batch independence
        alone = bellman_targets(
            q["next_dimension_q"][:, [b]],
            q["bootstrap_q"][:, [b]],
            q["returns"][[b]],
            q["bootstrap_weight"][[b]],
            None if returns_to_go is None else returns_to_go[[b]],
            taken,
        )
        assert torch.equal(alone[0], got[b])


def test_the_heads_minimum_comes_before_the_bins_maximum():
    # Head one likes bin 0, head two bin 1; the minimum over heads first leaves 1, the maximum first would leave 5.
    q = torch.tensor([[5.0, 1.0], [0.0, 6.0]])
    targets = bellman_targets(q.view(2, 1, 1, 2), 10 * q.view(2, 1, 2), torch.zeros(1), torch.ones(1), None)
    assert targets.tolist() == [[1.0, 10.0]]


def test_targets_reproduce_the_golden_ones():
    q = random_q(count=3, dims=3, bins=4, seed=GOLDEN["seed"])
    torch.testing.assert_close(bellman_targets(**q, returns_to_go=None), torch.tensor(GOLDEN["bellman"]).double())
    rewards, mask, terminated = random_windows(6, 5, GOLDEN["seed"])
    returns, weight, index = n_step_returns(rewards, mask, terminated, 2, 3, 0.98)
    torch.testing.assert_close(returns[mask[:, :2]], torch.tensor(GOLDEN["returns"]))
    torch.testing.assert_close(weight[mask[:, :2]], torch.tensor(GOLDEN["weight"]))
    assert index[mask[:, :2]].tolist() == GOLDEN["index"]


# A small MDP: in each state each of K^N joint actions leads to a reward and to one next state, or ends the task.


@dataclass(frozen=True)
class SmallMDP:
    """Tables over states and joint actions; next_state -1 is the end."""

    rewards: np.ndarray
    """[states, K, .., K]"""
    next_state: np.ndarray
    """int [states, K, .., K]"""
    discount: float

    def optimal_q(self) -> np.ndarray:
        """Value iteration over joint actions: [states, K, .., K]."""
        q = np.zeros_like(self.rewards)
        for _ in range(500):
            best = np.append(q.reshape(len(q), -1).max(axis=1), 0.0)  # the last: index -1, nothing follows
            q = self.rewards + self.discount * best[self.next_state]
        return q


def make_mdp(states: int, dims: int, bins: int, discount: float = 0.9, seed: int = 5) -> SmallMDP:
    """Random; a sixth of the joint actions end the task."""
    rng = np.random.default_rng(seed)
    shape = (states, *[bins] * dims)
    next_state = rng.integers(0, states, shape)
    next_state[rng.random(shape) < 1 / 6] = -1
    assert (next_state == -1).any()
    return SmallMDP(rng.uniform(-0.5, 1, shape), next_state, discount)


def prefix_values(joint: np.ndarray) -> list[np.ndarray]:
    """Q of each dimension given the earlier ones: maxima over the later ones, [states, K], [states, K, K], .."""
    dims = joint.ndim - 1
    return [joint.max(axis=tuple(range(i + 1, dims + 1))) if i < dims else joint for i in range(1, dims + 1)]


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_iterating_the_targets_in_tables_finds_the_optimal_values(dims: int, taken: bool):
    bins, mdp = 3, make_mdp(states=3, dims=dims, bins=3)
    joint = list(np.ndindex(mdp.rewards.shape))  # (state, bin, .., bin), all of them
    state = np.array([entry[0] for entry in joint])
    rewards = torch.from_numpy(mdp.rewards.flatten())
    weight = torch.from_numpy(np.where(mdp.next_state.flatten() < 0, 0.0, mdp.discount))
    tables = [np.zeros((3, *[bins] * i)) for i in range(1, dims + 1)]
    for _ in range(250 * dims):
        following = [np.stack([tables[i][entry[: i + 1]] for entry in joint]) for i in range(1, dims)]  # [J, K]
        following_q = torch.from_numpy(np.stack(following, axis=1) if following else np.zeros((len(joint), 0, bins)))
        bootstrap = torch.from_numpy(tables[0][mdp.next_state.flatten()])
        # The second head is the more optimistic: only the minimum finds the right values.
        targets = bellman_targets(
            torch.stack([following_q, following_q + 0.3]),
            torch.stack([bootstrap, bootstrap + 0.3]),
            rewards,
            weight,
            None,
            taken,
        ).numpy()
        for i, table in enumerate(tables):
            for row, entry in enumerate(joint):
                table[entry[: i + 2]] = targets[row, i]
    for got, want in zip(tables, prefix_values(mdp.optimal_q()), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert len(state) == 3 * bins**dims


def full_coverage(mdp: SmallMDP, length: int, seed: int = 0) -> Batch:
    """A window that starts with every joint action in every state and goes on at random; masked behind an end.

    States are one-hot; what stands in padded places is not zero, to show that nothing reads it.
    """
    rng = np.random.default_rng(seed)
    states, bins, dims = len(mdp.rewards), mdp.rewards.shape[1], mdp.rewards.ndim - 1
    joint = list(np.ndindex(mdp.rewards.shape))
    count = len(joint)
    observations = rng.normal(size=(count, length + 1, states)).astype(np.float32)
    actions = rng.uniform(-1, 1, (count, length, dims)).astype(np.float32)
    rewards = rng.normal(size=(count, length)).astype(np.float32)
    mask, terminated = np.zeros((2, count, length), bool)
    for b, (state, *action) in enumerate(joint):
        for t in range(length):
            entry = (state, *action)
            observations[b, t] = np.eye(states)[state]
            actions[b, t] = -1 + 2 * np.array(action) / (bins - 1)
            rewards[b, t] = mdp.rewards[entry]
            mask[b, t] = True
            state, action = mdp.next_state[entry], rng.integers(0, bins, dims)
            if state < 0:
                terminated[b, t] = True
                break
            observations[b, t + 1] = np.eye(states)[state]
    return Batch(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        mask=mask,
        returns_to_go=np.zeros_like(rewards),
    )


def test_the_learner_finds_the_optimal_values_of_a_small_mdp():
    """Tolerance 0.05 on values between -0.4 and 9.3 after 1,000 updates; some joint actions end the task."""
    torch.manual_seed(0)
    mdp, bins = make_mdp(states=3, dims=2, bins=3), 3
    batch = full_coverage(mdp, length=2)
    assert not batch["mask"].all()
    network = QT(QTConfig(embed_dim=32, num_heads=2, num_layers=1, bins=bins, dropout=0.0), obs_dim=3, action_dim=2)
    config = QTLearnerConfig(
        learning_rate=3e-3,
        schedule="linear",
        weight_decay=0.0,
        n_step=1,
        states_per_window=2,
        ema_coefficient=0.2,
        ema_every=1,
    )
    updates = 1000
    part = QTLearner(config, network, mdp.discount)
    learner = Learner(LearnerConfig(), [part], torch.device("cpu"), updates, bfloat16=False)
    for _ in range(updates):
        learner.update(batch)

    network.eval()
    states = torch.eye(3)
    first, joint = prefix_values(mdp.optimal_q())
    with torch.no_grad():
        for taken in range(bins):
            q = (
                network(states, network.tokenizer.decode(torch.full((3, 1), taken))).mean(dim=0).double().numpy()
            )  # [states, 2, K]
            np.testing.assert_allclose(q[:, 0], first, atol=0.05)
            np.testing.assert_allclose(q[:, 1], joint[:, taken], atol=0.05)
        chosen, walked = network.choose(states)
        by_first = network.first_dimension_value(states)
    optimal = first.max(axis=1)
    np.testing.assert_allclose(walked, optimal, atol=0.05)
    np.testing.assert_allclose(by_first, optimal, atol=0.05)
    gained = [joint[(s, *action)] for s, action in enumerate(chosen.tolist())]
    np.testing.assert_allclose(gained, optimal, atol=0.05)


@pytest.mark.parametrize("clamp", [False, True])
def test_the_learner_bounds_targets_by_the_last_dimensions_if_so_configured(clamp: bool):
    torch.manual_seed(0)
    qt = QT(QTConfig(embed_dim=8, num_heads=2, num_layers=1, bins=3), 3, 3)
    part = QTLearner(QTLearnerConfig(taken_clamp=clamp), qt, 0.9)
    mdp = make_mdp(states=3, dims=3, bins=3)
    batch = {name: torch.from_numpy(array) for name, array in full_coverage(mdp, length=4).items()}
    _, targets, _ = part._loss(batch)
    assert bool((targets[:, :-1] >= targets[:, -1:]).all()) is clamp
