"""SequenceModel as a generalist (common/models/sequence_model.py): shared tables, rewards as tokens, three uses."""

import pytest
import torch

from qttdm.common.models.sequence_model import Layout, SequenceModel
from tests.fakes import tiny_generalist

M, N, V, L = 3, 2, 7, 5
K = M + N + 2


def layout(obs_dim: int = M, action_dim: int = N) -> Layout:
    return Layout({"observations": obs_dim, "rewards": 1, "separator": 1, "actions": action_dim}, ())


def windows(seed: int = 0, obs_dim: int = M, action_dim: int = N) -> torch.Tensor:
    slots = obs_dim + action_dim + 2
    bins = torch.randint(V, (2, L * slots + obs_dim), generator=torch.Generator().manual_seed(seed))
    bins[:, obs_dim + 1 :: slots] = 0  # separators
    return bins


def test_separators_stand_where_the_paper_has_them():
    """Of 3 numbers observed and 2 acted, counted from 1: 5 and 12."""
    step = layout()
    assert [step.first("separator") + 1 + i * step.slots for i in range(2)] == [5, 12]


@pytest.mark.parametrize(("obs_dim", "action_dim"), [(3, 2), (1, 4), (6, 1)])
def test_one_model_reads_tasks_of_any_lengths(obs_dim, action_dim):
    """Token by token, out of a cache and in chunks, as whole windows."""
    generalist, bins = tiny_generalist(0), windows(1, obs_dim, action_dim)
    generalist.use(layout(obs_dim, action_dim))
    logits, _ = generalist(bins)
    sequences = generalist.select(generalist.begin(bins[:, :obs_dim]), torch.tensor([1, 0]), L + 1)
    token, turned = obs_dim, bins[[1, 0]]
    for size in (2, 1, 3, 1, 1, 4, 2):
        torch.testing.assert_close(generalist.next(sequences), logits[[1, 0], token - 1])
        generalist.feed(sequences, turned[:, token : token + size])
        token += size


def test_each_use_reads_what_comes_before_it_and_nothing_else():
    """(h, o) -> r, (h, o, r) -> a, (h, o, r, a) -> o'."""
    generalist, bins = tiny_generalist(1), windows(2)
    before, _ = generalist(bins)
    second = K  # the first token of the second step
    for target, given in ((second + M, second + M - 1), (second + M + 2, second + M), (second + K, second + K - 1)):
        changed = bins.clone()
        changed[:, given] = (changed[:, given] + 1) % V
        after, _ = generalist(changed)
        assert not torch.allclose(after[:, target - 1], before[:, target - 1])
        changed = bins.clone()
        changed[:, target:] = (changed[:, target:] + 1) % V
        after, _ = generalist(changed)
        assert torch.equal(after[:, target - 1], before[:, target - 1])


def naive(generalist: SequenceModel, tokens: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Imagine one step, the whole sequence read anew for each token: tokens [B, ..] end with an observation."""

    def following(seen: torch.Tensor) -> torch.Tensor:
        return generalist.next(generalist.begin(seen))

    columns = generalist.columns_of("actions")
    reward = following(tokens).argmax(dim=-1, keepdim=True)
    tokens = torch.cat([tokens, reward, torch.zeros_like(reward), generalist.tokens.encode(actions, columns)], dim=1)
    for _ in range(generalist.obs_dim):
        tokens = torch.cat([tokens, following(tokens).argmax(dim=-1, keepdim=True)], dim=1)
    column = int(generalist.columns_of("rewards")[0])
    return tokens, generalist.tokens.expectation(following(tokens).softmax(dim=-1), column)


def test_imagined_from_a_history_it_is_the_naive_run():
    generalist, context = tiny_generalist(2), torch.rand(1, M) * 2 - 1
    root = generalist.start({"observations": context})
    history = generalist.remember(root, torch.tensor([[0.5, -0.5]]))  # [1, K]
    now, actions = torch.rand(1, M) * 2 - 1, torch.rand(4, 2, N) * 2 - 1
    root = generalist.start({"observations": now, "history": history})
    rollout = generalist.select(root, torch.zeros(4, dtype=torch.int64), 2)
    tokens = torch.cat([history, generalist.tokens.encode(now, generalist.columns_of("observations"))], dim=1)
    tokens = tokens.expand(4, -1)
    for step in range(2):
        predicted = generalist.step(rollout, actions[:, step])
        tokens, rewards = naive(generalist, tokens, actions[:, step])
        torch.testing.assert_close(predicted.rewards, rewards)
        assert torch.equal(rollout.bins, tokens[:, -M:])


def test_what_it_proposes_is_its_policy_and_noise():
    generalist, now = tiny_generalist(3), torch.rand(3, M) * 2 - 1
    actions, noise = torch.full((3, N), 0.4), torch.tensor([[0.0, 0.0], [0.6, -3.0], [0.0, 0.0]])
    rollout = generalist.start({"observations": now})
    root = generalist.select(rollout, torch.arange(3), 1)
    taken, predicted = generalist.act(root, actions, noise, torch.tensor([False, True, True]))
    torch.testing.assert_close(taken[0], generalist.quantise(actions[0]))
    columns = generalist.columns_of("actions")
    for row in (1, 2):
        tokens = torch.cat([rollout.bins, rollout.waiting], dim=1)[row : row + 1]
        for n in range(N):
            logits = generalist.next(generalist.begin(tokens))
            mean = generalist.tokens.expectation(logits.softmax(dim=-1), int(columns[n]))
            bins = generalist.tokens.encode((mean + noise[row, n]).clamp(-1, 1)[:, None], columns[n : n + 1])
            torch.testing.assert_close(taken[row, n], generalist.tokens.decode(bins, columns[n : n + 1])[0, 0])
            tokens = torch.cat([tokens, bins], dim=1)
    assert taken[1, 1] == generalist.tokens.centres[3, 0]  # as low as it can be
    again = generalist.select(generalist.start({"observations": now}), torch.arange(3), 1)
    torch.testing.assert_close(predicted.rewards, generalist.step(again, taken).rewards)
    assert torch.equal(root.bins, again.bins)
