"""common/models/mlp_dynamics.py: members and particles in one batch are each as if alone."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from qttdm.common.models.mlp_dynamics import LOG_VARIANCE, MLPDynamics, MLPDynamicsConfig
from tests.fakes import randomise

M, N = 3, 2


def model(can_terminate: bool = True, **settings) -> MLPDynamics:
    """A small one with random weights and scales, those of variances positive."""
    torch.manual_seed(0)
    made = randomise(MLPDynamics(MLPDynamicsConfig(width=8, **settings), M, N, can_terminate))
    for scale in (made.scale, made.target_scale):
        scale.std.abs_().add_(0.1)
    return made


def alone(made: MLPDynamics, member: int, observation: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One member's outputs for one step, by products of single layers."""
    x = torch.cat([(observation - made.scale.mean) / made.scale.std, action])
    for layer in made.hidden:
        x = F.silu(layer.weight[member].T @ x + layer.bias[member, 0])
    heads = (made.state_head, made.reward_head[0], made.continuation_head)
    state, reward, goes_on = (head.weight[member].T @ x + head.bias[member, 0] for head in heads)
    return state, reward[0] * made.reward_unit.size, goes_on[0]


def test_members_in_one_batch_are_each_as_if_alone():
    made = model(members=3, particles=3, probabilistic=True)
    observations, actions = torch.randn(3, 4, M), torch.rand(3, 4, N) * 2 - 1
    said = made(observations, actions)
    for member in range(3):
        for row in range(4):
            state, reward, goes_on = alone(made, member, observations[member, row], actions[member, row])
            torch.testing.assert_close(said.targets[member, row], state[:M])
            torch.testing.assert_close(said.rewards[member, row], reward)
            torch.testing.assert_close(said.continuation_logits[member, row], goes_on)
    assert said.log_variance.shape == (3, 4, M)


def test_members_read_tokens_by_tables_of_their_own():
    """Each number's row of its member's table, one after the other."""
    made = model(members=2, particles=2, input_bins=5)
    observations, actions = torch.randn(2, 4, M), torch.rand(2, 4, N) * 2 - 1
    got, numbers = made._inputs(observations, actions), torch.cat([observations, actions], dim=-1)
    for member in range(2):
        for row in range(4):
            bins = [int((x >= made.tokens.edges[i]).sum()) for i, x in enumerate(numbers[member, row])]
            rows = [(member * (M + N) + i) * 5 + k for i, k in enumerate(bins)]
            assert torch.equal(got[member, row], torch.cat([made.embedding.weight[place] for place in rows]))
    assert made(observations, actions).targets.shape == (2, 4, M)


def test_log_variances_stay_within_their_bounds():
    made = model(probabilistic=True)
    low, high = LOG_VARIANCE
    for size in (-1e3, 0.0, 1e3):
        made.state_head.bias[..., M:] = size
        variance = made(torch.randn(1, 50, M), torch.zeros(1, 50, N)).log_variance
        assert (variance >= low - 1e-3).all()
        assert (variance <= high + 1e-3).all()


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("probabilistic", [False, True])
def test_particles_keep_their_member(change, probabilistic):
    """Imagined with others, copied on the way: each as a loop over single particles, each with its own member."""
    members, particles, steps = 2, 4, 5
    made = model(members=members, particles=particles, predict_change=change, probabilistic=probabilistic)
    now, actions = torch.randn(2, M), torch.rand(steps, 3, N) * 2 - 1
    rollout = made.select(made.start({"observations": now}), torch.tensor([1, 0, 1]), steps)
    want = [[now[i].clone() for i in (1, 0, 1)] for _ in range(particles)]
    for step in range(steps):
        if step == 2:
            order = torch.tensor([2, 2, 0])
            rollout = made.select(rollout, order, steps - 2)
            want = [[row[i] for i in order.tolist()] for row in want]
        predicted = made.step(rollout, actions[step])
        rewards = torch.zeros(3)
        for particle in range(particles):
            member = particle // (particles // members)
            for b in range(3):
                state, reward, _ = alone(made, member, want[particle][b], actions[step, b])
                target = state[:M]
                if probabilistic:
                    said = made(want[particle][b].expand(members, 1, M), actions[step, b].expand(members, 1, N))
                    target = target + (said.log_variance[member, 0] / 2).exp() * made.normal[step, particle, 0]
                after = target * made.target_scale.std + made.target_scale.mean
                want[particle][b] = want[particle][b] + after if change else after
                rewards[b] += reward / particles
        torch.testing.assert_close(rollout.particles, torch.stack([torch.stack(row) for row in want]))
        torch.testing.assert_close(predicted.rewards, rewards)
        torch.testing.assert_close(made.state(rollout)["observations"], rollout.particles.mean(dim=0))


def test_a_root_stays_as_it_is_and_the_table_of_numbers_is_not_the_runs():
    """What is drawn depends on no seed, and drawing it moves no random stream; long sequences use it again."""
    made = model(members=2, particles=2, probabilistic=True)
    torch.manual_seed(5)
    other = MLPDynamics(made.config, M, N, False)
    assert torch.equal(made.normal, other.normal)
    assert other.continuation_head is None
    root = made.start({"observations": torch.zeros(1, M)})
    rollout = made.select(root, torch.tensor([0, 0]), 70)
    for _ in range(70):
        made.step(rollout, torch.zeros(2, N))
    assert torch.equal(root.particles, torch.zeros(2, 1, M))
    assert (root.steps, rollout.steps) == (0, 70)
    assert torch.equal(rollout.particles[:, 0], rollout.particles[:, 1])
    assert not torch.equal(rollout.particles[0], rollout.particles[1])


def test_particles_that_cannot_be_dealt_out_are_one_line():
    with pytest.raises(ValidationError, match="particles=4 cannot be dealt out evenly to members=3; want a multiple"):
        MLPDynamicsConfig(members=3, particles=4)
