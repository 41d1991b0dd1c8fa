"""common/models/tokenizer.py against one number at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qttdm.common.models.tokenizer import ActionEmbedding, ActionTokenizer

BINS = [2, 3, 5, 42, 255, 256, 257]  # 42: multiplying by 2 / (K-1) instead of dividing ends below +1


def slow_encode(value: float, bins: int) -> int:
    """The bin whose value lies closest, among all of them."""
    values = [-1 + 2 * k / (bins - 1) for k in range(bins)]
    clamped = min(1.0, max(-1.0, value))
    return min(range(bins), key=lambda k: abs(values[k] - clamped))


def uniform_actions(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32))


@pytest.mark.parametrize("bins", BINS)
def test_values_are_evenly_spaced_from_minus_one_to_plus_one(bins: int):
    values = ActionTokenizer(bins).decode(torch.arange(bins))
    assert values.dtype == torch.float32
    assert values[0] == -1
    assert values[-1] == 1
    torch.testing.assert_close(
        values.double().diff(), torch.full((bins - 1,), 2 / (bins - 1)).double(), rtol=1e-4, atol=0
    )


def test_the_ends_are_exact_and_within_bounds_for_every_number_of_bins():
    for bins in range(2, 600):
        values = ActionTokenizer(bins).decode(torch.arange(bins))
        assert (values[0], values[-1]) == (-1, 1), bins
        assert values.abs().max() <= 1, bins


@pytest.mark.parametrize("bins", BINS)
def test_every_bin_survives_the_round_trip(bins: int):
    tokenizer, every = ActionTokenizer(bins), torch.arange(bins)
    encoded = tokenizer.encode(tokenizer.decode(every))
    assert encoded.dtype == torch.int64
    assert torch.equal(encoded, every)


@pytest.mark.parametrize("bins", BINS)
def test_encode_is_nearest(bins: int):
    actions = torch.cat([uniform_actions(200), torch.tensor([-1.0, 1.0, -1.5, 7.0])])
    want = [slow_encode(value, bins) for value in actions.tolist()]
    assert ActionTokenizer(bins).encode(actions).tolist() == want


@pytest.mark.parametrize("bins", BINS)
def test_decoding_is_off_by_half_a_bin_at_most_and_by_nothing_on_average(bins: int):
    tokenizer, actions = ActionTokenizer(bins), uniform_actions(200_000)
    error = tokenizer.decode(tokenizer.encode(actions)) - actions
    half_bin = 1 / (bins - 1)
    assert error.abs().max() <= half_bin + 1e-6
    # Uniform in +- half a bin: the mean of 200,000 has a standard deviation of 0.0013 half bins.
    assert abs(error.mean().item()) < 0.007 * half_bin


@pytest.mark.parametrize("bins", BINS)
def test_snap_is_encode_and_decode(bins: int):
    tokenizer = ActionTokenizer(bins)
    actions = torch.cat([uniform_actions(5000), torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])])
    assert torch.equal(tokenizer.snap(actions), tokenizer.decode(tokenizer.encode(actions)))


def test_any_shape_passes_and_no_entry_sees_another():
    tokenizer, actions = ActionTokenizer(7), uniform_actions(24).view(2, 3, 4)
    for function in (tokenizer.encode, tokenizer.snap, lambda a: tokenizer.decode(tokenizer.encode(a))):
        whole = function(actions)
        assert whole.shape == actions.shape
        alone = torch.stack([function(row) for row in actions.flatten()])
        assert torch.equal(whole.flatten(), alone)


def test_replace_takes_the_uniform_bin_exactly_where_chance_is_below_the_probability():
    tokenizer = ActionTokenizer(5)
    bins = torch.tensor([[0, 1, 2], [3, 4, 0]])
    chance = torch.tensor([[0.24, 0.25, 0.5], [0.0, 0.99, 0.05]])
    which = torch.tensor([[0.99, 0.0, 0.0], [0.2, 0.0, 0.59]])
    assert tokenizer.replace(bins, chance, which, 0.25).tolist() == [[4, 1, 2], [1, 4, 2]]


def test_replace_honours_its_probability_and_is_uniform_over_bins():
    bins, count = 8, 80_000
    generator = torch.Generator().manual_seed(3)
    chance, which = torch.rand(2, count, generator=generator)
    # A bin that no replacement can be: every replaced place is seen.
    replaced = ActionTokenizer(bins).replace(torch.full((count,), -1), chance, which, 0.1)
    share = (replaced >= 0).float().mean().item()
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / count) ** 0.5
    counts = replaced[replaced >= 0].bincount(minlength=bins)
    assert len(counts) == bins
    expected = counts.sum().item() / bins
    assert (counts - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize("bins", BINS)
def test_replace_at_its_extremes(bins: int):
    tokenizer, present = ActionTokenizer(bins), torch.ones(4, dtype=torch.int64)
    largest = 1 - 2**-24  # the largest number that torch.rand returns
    chance, which = torch.tensor([0.0, 0.3, 0.6, largest]), torch.tensor([0.0, 0.5, largest, largest])
    assert torch.equal(tokenizer.replace(present, chance, which, 0.0), present)
    assert tokenizer.replace(present, chance, which, 1.0).tolist() == [0, bins // 2, bins - 1, bins - 1]


def slow_lookup(embedding: ActionEmbedding, bins: Tensor, first: int, size: int) -> Tensor:
    """One table per dimension, one row at a time."""
    tables = embedding.table.weight.detach().split(size)
    rows = [tables[first + i][k] for row in bins.flatten(0, -2) for i, k in enumerate(row.tolist())]
    return torch.stack(rows).view(*bins.shape, -1)


@pytest.mark.parametrize(("first", "dims"), [(0, 4), (0, 3), (2, 1), (1, 3)])
def test_embedding_equals_a_table_for_each_dimension(first: int, dims: int):
    torch.manual_seed(0)
    embedding = ActionEmbedding(action_dim=4, tokenizer=ActionTokenizer(5), embed_dim=3)
    bins = torch.randint(5, (2, 6, dims))
    got = embedding.embed_bins(bins, first)
    assert torch.equal(got, slow_lookup(embedding, bins, first, 5))
    alone = torch.stack([embedding.embed_bins(row.unsqueeze(0), first)[0] for row in bins])
    assert torch.equal(got, alone)


def test_embedding_moves_only_the_rows_that_were_looked_up():
    embedding = ActionEmbedding(action_dim=2, tokenizer=ActionTokenizer(3), embed_dim=4)
    embedding.embed_bins(torch.tensor([[1, 2], [1, 0]])).sum().backward()
    per_row = embedding.table.weight.grad[:, 0].tolist()
    assert per_row == [0, 2, 0, 1, 0, 1]


def test_embedding_keeps_only_indices_for_the_backward_pass():
    saved: list[Tensor] = []
    embedding = ActionEmbedding(action_dim=6, tokenizer=ActionTokenizer(256), embed_dim=32)
    bins = torch.randint(256, (16, 20, 6))

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        embedding.embed_bins(bins)
    assert saved
    assert sum(x.nbytes for x in saved) <= bins.nbytes


def slow_between(value: float, at_bins: list[float]) -> float:
    """Linear interpolation between the two bins around it."""
    position = (min(1.0, max(-1.0, value)) + 1) / 2 * (len(at_bins) - 1)
    low = min(int(position), len(at_bins) - 2)
    return at_bins[low] + (position - low) * (at_bins[low + 1] - at_bins[low])


@pytest.mark.parametrize("bins", [2, 3, 5, 11])
def test_interpolating_reads_between_the_bins(bins: int):
    tokenizer = ActionTokenizer(bins, interpolate=True)
    actions = torch.cat([uniform_actions(200), tokenizer.decode(torch.arange(bins)), torch.tensor([-1.5, 7.0])])
    values = torch.randn(2, len(actions), bins, generator=torch.Generator().manual_seed(1))
    got = tokenizer.read(values, actions)  # [heads, actions]
    for head in range(2):
        want = [slow_between(a, at) for a, at in zip(actions.tolist(), values[head].tolist(), strict=True)]
        torch.testing.assert_close(got[head], torch.tensor(want), rtol=1e-4, atol=1e-5)


def test_interpolating_teaches_both_bins_around_an_action_by_its_distance():
    values = torch.zeros(1, 5, requires_grad=True)
    ActionTokenizer(5, interpolate=True).read(values, torch.tensor([0.125])).sum().backward()  # bins at 0 and 0.5
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 0.0, 0.75, 0.25, 0.0]]))


def test_interpolating_leaves_actions_as_they_are_within_bounds():
    tokenizer, actions = ActionTokenizer(5, interpolate=True), torch.tensor([-1.5, -1.0, 0.3, 1.0, 2.0])
    assert tokenizer.quantise(actions).tolist() == actions.clamp(-1, 1).tolist()
    assert tokenizer.uniform(torch.tensor([0.0, 0.25, 0.9])).tolist() == pytest.approx([-1.0, -0.5, 0.8])
    assert ActionTokenizer(5).quantise(actions).tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("first", [0, 2])
def test_an_interpolated_embedding_lies_between_those_of_the_bins(first: int):
    embedding = ActionEmbedding(action_dim=4, tokenizer=ActionTokenizer(5, interpolate=True), embed_dim=3)
    actions = uniform_actions(12).view(2, 3, 2)
    got = embedding(actions, first)
    assert got.shape == (2, 3, 2, 3)
    rows = embedding.table.weight.detach().view(4, 5, 3)
    for i, j, n in np.ndindex(2, 3, 2):
        want = [slow_between(actions[i, j, n].item(), rows[first + n, :, d].tolist()) for d in range(3)]
        assert got[i, j, n].tolist() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("interpolate", [False, True])
def test_one_token_is_the_sum_of_the_dimensions(interpolate: bool):
    embedding = ActionEmbedding(action_dim=3, tokenizer=ActionTokenizer(5, interpolate), embed_dim=4)
    actions = uniform_actions(18).view(2, 3, 3)
    torch.testing.assert_close(embedding.sum(actions), embedding(actions).sum(dim=-2))
