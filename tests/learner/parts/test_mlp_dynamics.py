"""learner/parts/mlp_dynamics.py: gradients against a plain loop, members apart from each other, and what is learned."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qttdm.common.models.mlp_dynamics import LOG_VARIANCE, MLPDynamics, MLPDynamicsConfig
from qttdm.learner.parts.mlp_dynamics import MLPDynamicsLearner, MLPDynamicsLearnerConfig
from tests.fakes import randomise

M, N, B = 3, 2, 6


def learner(members: int = 2, can_terminate: bool = True, seed: int = 0, width: int = 8, **settings):
    torch.manual_seed(seed)
    config = MLPDynamicsConfig(width=width, members=members, particles=members, **settings)
    network = MLPDynamics(config, M, N, can_terminate)
    return MLPDynamicsLearner(MLPDynamicsLearnerConfig(learning_rate=5e-3), network)


def batch_of(size: int = B, seed: int = 0) -> dict[str, torch.Tensor]:
    """Transitions of s' = (s + a_1, rotated) and a reward that sees both."""
    generator = torch.Generator().manual_seed(seed)
    now, actions = torch.randn(size, M, generator=generator), torch.rand(size, N, generator=generator) * 2 - 1
    after = 0.5 * now.roll(1, dims=-1) + actions[:, :1]
    return {
        "observations": torch.stack([now, after], dim=1),
        "actions": actions[:, None],
        "rewards": (now[:, :1] * actions[:, 1:]) + 0.5,
        "terminated": now[:, :1] > 1.0,
        "mask": torch.ones(size, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize("can_terminate", [False, True])
@pytest.mark.parametrize("probabilistic", [False, True])
def test_gradients_are_those_of_a_plain_loop(probabilistic, can_terminate):
    """Each member's own likelihood of its own rows, number by number; no other member's rows move it."""
    part, batch = learner(probabilistic=probabilistic, predict_change=True, can_terminate=can_terminate), batch_of()
    net = part.network
    randomise(net).requires_grad_(True)
    for frozen in (*net.scale.parameters(), *net.target_scale.parameters(), *net.reward_unit.parameters()):
        frozen.requires_grad_(False).abs_().add_(0.5)
    (2 * sum(part.loss(batch))).backward()
    got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    (low, high), share = LOG_VARIANCE, B // 2
    for row in range(B):
        member = row // share
        now, after = batch["observations"][row]
        x = torch.cat([(now - net.scale.mean) / net.scale.std, batch["actions"][row, 0]])
        for layer in net.hidden:
            x = F.silu(x @ layer.weight[member] + layer.bias[member, 0])
        out = x @ net.state_head.weight[member] + net.state_head.bias[member, 0]
        total = torch.zeros(())
        for m in range(M):
            want = (after[m] - now[m] - net.target_scale.mean[m]) / net.target_scale.std[m]
            if probabilistic:
                bounded = high - torch.log1p(torch.exp(high - out[M + m]))
                bounded = low + torch.log1p(torch.exp(bounded - low))
                normal = torch.distributions.Normal(out[m], torch.exp(bounded / 2))
                total = total - (normal.log_prob(want) + 0.5 * math.log(2 * math.pi)) / M
            else:
                total = total + (want - out[m]) ** 2 / M
        head = net.reward_head[0]
        reward = (x @ head.weight[member] + head.bias[member, 0])[0]
        total = total + (reward - batch["rewards"][row, 0] / net.reward_unit.size) ** 2
        if can_terminate:
            logit = (x @ net.continuation_head.weight[member] + net.continuation_head.bias[member, 0])[0]
            total = total - F.logsigmoid(-logit if batch["terminated"][row, 0] else logit)
        (total / share).backward()
    want = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for name in got:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


def test_members_begin_and_stay_apart():
    """Two members with equal weights and rows learn the same; by their own share of the batch they differ."""
    part = learner()
    layer = part.network.hidden[0].weight
    assert not torch.equal(layer[0], layer[1])
    with torch.no_grad():
        for parameter in part.network.parameters():
            if parameter.ndim == 3:
                parameter[1] = parameter[0]
    half = batch_of(3)
    part.update({name: torch.cat([array, array]) for name, array in half.items()}, 0.0)
    torch.testing.assert_close(layer[0], layer[1])
    part.update(batch_of(6), 0.0)
    assert not torch.allclose(layer[0], layer[1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"predict_change": True},
        {"predict_change": True, "probabilistic": True},
        {"predict_change": True, "input_bins": 16},
    ],
)
def test_it_learns_what_follows_and_goes_on_exactly_after_a_resume(settings):
    # A bin's embedding learns from what falls into it alone.
    part, batch = learner(width=32, **settings), batch_of(2_048 if "input_bins" in settings else 512)
    part.prepare(iter(lambda: {name: array.numpy() for name, array in batch.items()}, None))
    for _ in range(150):
        part.update(batch, 0.0)
    net, fresh = part.network, batch_of(50, seed=1)
    rollout = net.start({"observations": fresh["observations"][:, 0]})
    predicted = net.step(rollout, fresh["actions"][:, 0])
    error = (net.state(rollout)["observations"] - fresh["observations"][:, 1]).detach().square().mean().sqrt()
    assert error < 0.35 * fresh["observations"][:, 1].std()
    assert np.corrcoef(predicted.rewards.detach(), fresh["rewards"][:, 0])[0, 1] > 0.7
    other = learner(seed=1, width=32, **settings)
    other.load_state(part.state())
    mine, theirs = part.update(batch, 0.0), other.update(batch, 0.0)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.network.parameters(), strict=True))


def test_scales_are_fitted_to_what_is_seen_and_to_what_is_predicted_and_follow_both():
    part, batch = learner(predict_change=True), batch_of(500)
    part.prepare(iter([{name: array.numpy() for name, array in batch.items()}] * 2))
    now, after = batch["observations"].unbind(dim=1)
    torch.testing.assert_close(part.network.scale.mean, now.mean(dim=0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(part.network.target_scale.std, (after - now).std(dim=0), rtol=1e-2, atol=1e-3)
    far = batch | {"observations": 9 * batch["observations"]}
    for _ in range(400):
        part.update(far, 0.0)
    torch.testing.assert_close(part.network.scale.std, 9 * now.std(dim=0), rtol=0.05, atol=0)
    torch.testing.assert_close(part.network.target_scale.std, 9 * (after - now).std(dim=0), rtol=0.05, atol=0)


def test_bins_are_fitted_to_what_is_read():
    """About as many of each number in each bin, actions too."""
    part, batch = learner(input_bins=5), batch_of(500)
    part.prepare(iter([{name: array.numpy() for name, array in batch.items()}] * 2))
    read = torch.cat([batch["observations"][:, 0], batch["actions"][:, 0]], dim=1)
    bins = part.network.tokens.encode(read)
    assert bins.shape == (500, M + N)
    for column in bins.unbind(dim=1):
        assert column.bincount(minlength=5).tolist() == pytest.approx([100] * 5, abs=3)
