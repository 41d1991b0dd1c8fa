"""common/models/sequence_model.py: whole windows and token by token are the same, and nothing sees what comes later."""

import pytest
import torch
from torch import Tensor

from qttdm.common.models.sequence_model import Layout, SequenceModel, SequenceModelConfig
from tests.fakes import tiny_sequence_model

M, N, V, L = 3, 2, 5, 4
K = M + N


def windows(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(V, (batch, L * K + M), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("with_goals", [False, True])
def test_token_by_token_is_the_same_as_whole_windows(with_goals):
    model, bins = tiny_sequence_model(0), windows()
    goals = torch.tensor([[0, 1, 2], [4, 3, 2]]) if with_goals else None
    logits, outcome = model(bins, goals)
    root = model.begin(bins[:, :M], goals)
    sequences = model.select(root, torch.tensor([1, 0, 1]), L + 1)  # copies are on their own
    copied, step = bins[[1, 0, 1]], 0
    for token in range(M, bins.shape[1]):
        torch.testing.assert_close(model.next(sequences), logits[[1, 0, 1], token - 1])
        model.feed(sequences, copied[:, token])
        if token % K == K - 1:
            now = model.outcome(sequences.hidden)
            for name, of_steps in outcome.logits.items():
                torch.testing.assert_close(now.logits[name], of_steps[[1, 0, 1], step])
            torch.testing.assert_close(now.continuation_logits, outcome.continuation_logits[[1, 0, 1], step])
            step += 1
    assert step == L


def test_nothing_depends_on_later_tokens():
    model, bins = tiny_sequence_model(1), windows(1)
    before, outcome = model(bins)
    for token in range(bins.shape[1] - 1):
        changed = bins.clone()
        changed[0, token] = (changed[0, token] + 1) % V
        after, moved = model(changed)
        assert torch.equal(after[0, :token], before[0, :token])
        assert not torch.allclose(after[0, token], before[0, token])
        past = token // K
        assert torch.equal(moved.logits["rewards"][0, :past], outcome.logits["rewards"][0, :past])


def test_a_goal_changes_all_that_follows():
    model, bins = tiny_sequence_model(2), windows(1)
    one, other = (model(bins, torch.tensor([goal]))[0] for goal in ([0, 0, 0], [0, 0, 1]))
    assert all(not torch.allclose(one[0, token], other[0, token]) for token in range(one.shape[1]))
    with pytest.raises(AssertionError, match="without goals"):
        SequenceModel(model.config, model.layout, False)(bins, torch.tensor([[0, 0, 0]]))


def test_as_a_dynamics_model_it_takes_the_likeliest_observations():
    model = tiny_sequence_model(3)
    observations, actions = torch.rand(4, M), torch.rand(4, 2, N) * 2 - 1
    rollout = model.select(model.start({"observations": observations}), torch.arange(4), 2)
    for step in range(2):
        predicted = model.step(rollout, actions[:, step])
        assert predicted.rewards.shape == (4,)
    tokens = torch.cat([model.tokens.encode(observations), model.tokens.encode(actions[:, 0], M)], dim=1)
    for _ in range(M):  # one step by hand, the whole sequence read anew each time
        tokens = torch.cat([tokens, model.next(model.begin(tokens)).argmax(dim=1, keepdim=True)], dim=1)
    tokens = torch.cat([tokens, model.tokens.encode(actions[:, 1], M)], dim=1)
    for _ in range(M):
        tokens = torch.cat([tokens, model.next(model.begin(tokens)).argmax(dim=1, keepdim=True)], dim=1)
    torch.testing.assert_close(model.state(rollout)["observations"], model.tokens.decode(tokens[:, -M:]))


def test_where_asked_it_acts_by_its_own_policy():
    model, observations = tiny_sequence_model(3), torch.rand(2, M)
    actions, noise = torch.full((2, N), 0.4), torch.tensor([[0.0, 0.0], [0.1, -3.0]])
    rollout, again = (model.select(model.start({"observations": observations}), torch.arange(2), 1) for _ in range(2))
    taken, predicted = model.act(rollout, actions, noise, torch.tensor([False, True]))
    assert torch.equal(taken[0], model.quantise(actions[0]))
    tokens = model.tokens.encode(observations[1:])
    for n in range(N):  # the whole sequence read anew each time
        mean = model.tokens.expectation(model.next(model.begin(tokens)).softmax(dim=-1), M + n)
        bins = model.tokens.encode((mean + noise[1, n]).clamp(-1, 1)[:, None], M + n)
        assert torch.equal(taken[1, n], model.tokens.decode(bins, M + n)[0, 0])
        tokens = torch.cat([tokens, bins], dim=1)
    torch.testing.assert_close(predicted.rewards, model.step(again, taken).rewards)
    assert torch.equal(rollout.bins, again.bins)


def test_published_size():
    """Published for hopper, 11 + 3: 1,225,472, with reward and value tokens and stop tokens, a window of 10.

    Here the trunk and the rest are counted apart: 4 blocks of 12 D^2 + 13 D, a final norm.
    """
    config = SequenceModelConfig(window=10)
    model = SequenceModel(config, Layout({"observations": 11, "actions": 3}, ("rewards", "values")), False)
    dim, blocks = 128, 4 * (12 * 128 * 128 + 13 * 128) + 2 * 128
    assert sum(p.numel() for p in model.trunk.parameters()) == blocks
    tables = 14 * 100 * dim + 16 * 100 * dim
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == blocks + tables
