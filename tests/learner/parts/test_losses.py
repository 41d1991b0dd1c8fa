"""learner/parts/losses.py against loops over windows, steps and dimensions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qttdm.common.models.tdm import TDM, Prediction, TDMConfig
from qttdm.common.models.tokenizer import ActionTokenizer
from qttdm.learner.parts.losses import DynamicsLoss, dynamics_loss, masked_mean, q_loss

WEIGHTS = {"state_weight": 1.0, "reward_weight": 2.0}
B, L, M, N, K = 6, 4, 3, 2, 5


def make_mask(seed: int = 0) -> Tensor:
    """[B, L]: windows of 1 to L steps, one of them whole."""
    lengths = np.append(np.random.default_rng(seed).integers(1, L + 1, B - 1), L)
    return torch.from_numpy(np.arange(L) < lengths[:, None])


def make_dynamics(can_terminate: bool = True, seed: int = 1) -> tuple[Prediction, Tensor, Tensor, Tensor, Tensor]:
    """A prediction [B, L] and what was so: next states, rewards, terminated, mask."""
    generator = torch.Generator().manual_seed(seed)
    states, rewards, logits = (torch.randn(B, L, *tail, generator=generator) for tail in ((M,), (), ()))
    prediction = Prediction(states, rewards, logits if can_terminate else None)
    mask = make_mask()
    terminated = torch.zeros(B, L, dtype=torch.bool)
    terminated[torch.arange(0, B, 2), mask[::2].sum(dim=1) - 1] = True
    return (
        prediction,
        torch.randn(B, L, M, generator=generator),
        torch.randn(B, L, generator=generator),
        terminated,
        mask,
    )


def slow_dynamics(
    prediction: Prediction, next_observations: Tensor, rewards: Tensor, terminated: Tensor, mask: Tensor
) -> tuple[float, float, float]:
    """State, reward and continuation terms, each a mean over the steps that exist."""
    state, reward, continuation, steps = 0.0, 0.0, 0.0, 0
    for b in range(B):
        for t in range(L):
            if not mask[b, t]:
                continue
            steps += 1
            errors = [(prediction.observations[b, t, m] - next_observations[b, t, m]).item() ** 2 for m in range(M)]
            state += sum(errors) / M
            density = math.exp(-0.5 * (prediction.rewards[b, t] - rewards[b, t]).item() ** 2) / math.sqrt(2 * math.pi)
            reward -= math.log(density)
            if prediction.continuation_logits is not None:
                goes_on = 1 / (1 + math.exp(-prediction.continuation_logits[b, t].item()))
                continuation -= math.log(1 - goes_on if terminated[b, t] else goes_on)
    return state / steps, reward / steps, continuation / steps


@pytest.mark.parametrize("can_terminate", [False, True])
def test_dynamics_loss_equals_a_loop(can_terminate: bool):
    arguments = make_dynamics(can_terminate)
    got = dynamics_loss(*arguments, **WEIGHTS)
    state, reward, continuation = slow_dynamics(*arguments)
    assert got.state.item() == pytest.approx(state, rel=1e-5)
    assert got.reward.item() == pytest.approx(reward, rel=1e-5)
    assert got.continuation.item() == pytest.approx(continuation, rel=1e-5)
    assert got.total.item() == pytest.approx(1.0 * state + 2.0 * reward + continuation, rel=1e-5)
    assert (continuation > 0) == can_terminate


def test_a_perfect_prediction_leaves_the_density_s_constant():
    _, states, rewards, terminated, mask = make_dynamics()
    logits = torch.where(terminated, -100.0, 100.0)
    got = dynamics_loss(Prediction(states, rewards, logits), states, rewards, terminated, mask, **WEIGHTS)
    assert got.state == 0
    assert got.reward.item() == pytest.approx(0.918938533)  # ln sqrt(2 pi)
    assert got.continuation < 1e-30


def dynamics_of(
    tdm: TDM, observations: Tensor, actions: Tensor, rewards: Tensor, terminated: Tensor, mask: Tensor
) -> DynamicsLoss:
    prediction = tdm(observations[:, :-1], actions)
    return dynamics_loss(prediction, observations[:, 1:], rewards, terminated, mask, **WEIGHTS)


def test_padded_steps_have_no_influence_on_loss_or_gradients():
    torch.manual_seed(0)
    config = TDMConfig(
        embed_dim=8, num_heads=2, num_layers=1, dropout=0.0, window=L, bins=K, head_dim=8, head_dropout=0
    )
    tdm = TDM(config, M, N, can_terminate=True)
    with torch.no_grad():
        for p in tdm.parameters():
            p.normal_(std=0.3)
    observations, actions, rewards = torch.randn(B, L + 1, M), torch.rand(B, L, N) * 2 - 1, torch.randn(B, L)
    *_, terminated, mask = make_dynamics()
    assert not mask.all()
    exists = torch.cat([torch.ones(B, 1, dtype=torch.bool), mask], dim=1).unsqueeze(-1)  # an observation more
    results = []
    for junk in (0.0, 0.9):
        tdm.zero_grad()
        loss = dynamics_of(
            tdm,
            torch.where(exists, observations, 30 * junk),
            torch.where(mask.unsqueeze(-1), actions, junk),
            torch.where(mask, rewards, 50 * junk),
            torch.where(mask, terminated, junk > 0),
            mask,
        )
        loss.total.backward()
        results.append((loss.total, [p.grad.clone() for p in tdm.parameters()]))
    (one, one_grads), (other, other_grads) = results
    assert one == other
    for a, b in zip(one_grads, other_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_window_of_one_step_weighs_as_one_step():
    """Means are over steps, not over windows: two batches' losses combine by their numbers of steps."""
    prediction, *rest = make_dynamics()
    mask = rest[-1]

    def state_loss(rows: slice) -> float:
        part = Prediction(prediction.observations[rows], prediction.rewards[rows], prediction.continuation_logits[rows])
        return dynamics_loss(part, *(x[rows] for x in rest), **WEIGHTS).total.item()

    first, second = mask[:2].sum().item(), mask[2:].sum().item()
    combined = (first * state_loss(slice(0, 2)) + second * state_loss(slice(2, B))) / (first + second)
    assert state_loss(slice(0, B)) == pytest.approx(combined, rel=1e-5)


def make_q(seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(2, B, N, K, generator=generator)
    bins = torch.randint(K, (B, N), generator=generator)
    return q.requires_grad_(), bins, 2 * torch.randn(B, N, generator=generator), make_mask()[:, 2]


def loss_of_bins(q: Tensor, bins: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, as the update computes it from actions, and the Q of the bins taken."""
    tokenizer = ActionTokenizer(K)
    taken = tokenizer.read(q, tokenizer.decode(bins))
    return q_loss(taken, targets, mask), taken


def slow_q_loss(q: Tensor, bins: Tensor, targets: Tensor, mask: Tensor) -> float:
    total, states = 0.0, 0
    for b in range(B):
        if not mask[b]:
            continue
        states += 1
        for head in range(2):
            for dim in range(N):
                taken = bins[b, dim].item()
                error = abs(q[head, b, dim, taken].item() - targets[b, dim].item())
                total += (0.5 * error**2 if error < 1 else error - 0.5) / N
    return total / states / 2  # heads


def test_q_loss_equals_a_loop():
    q, bins, targets, mask = make_q()
    assert 0 < mask.sum() < B
    loss, taken = loss_of_bins(q, bins, targets, mask)
    assert loss.item() == pytest.approx(slow_q_loss(q, bins, targets, mask), rel=1e-5)
    assert taken.shape == (2, B, N)
    for head, b, dim in np.ndindex(2, B, N):
        assert taken[head, b, dim] == q[head, b, dim, bins[b, dim]]


def test_only_the_bins_taken_are_regressed_and_both_heads_towards_the_same_target():
    q, bins, targets, mask = make_q()
    loss_of_bins(q, bins, targets, mask)[0].backward()
    taken = F.one_hot(bins, K).bool().expand(2, -1, -1, -1)
    assert (q.grad[~taken] == 0).all()
    towards = q.detach() - targets.unsqueeze(-1)
    want = towards.clamp(-1, 1) / (mask.sum() * N * 2) * mask.view(1, B, 1, 1) * taken  # smooth L1's slope
    torch.testing.assert_close(q.grad, want)


def test_states_that_do_not_exist_have_no_influence():
    q, bins, targets, mask = make_q()
    loss, _ = loss_of_bins(q, bins, targets, mask)
    (want,) = torch.autograd.grad(loss, q)
    absent = ~mask
    other = torch.where(absent.view(1, B, 1, 1), 100.0, q.detach()).requires_grad_()
    changed, _ = loss_of_bins(other, bins, torch.where(absent.unsqueeze(1), -7.0, targets), mask)
    (got,) = torch.autograd.grad(changed, other)
    assert changed.item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(got, want)


def test_masked_mean():
    x = torch.tensor([[1.0, 2.0], [4.0, 100.0]])
    assert masked_mean(x, torch.tensor([[True, True], [True, False]])) == pytest.approx(7 / 3)
