"""common/models/tokens.py: every number has a bin, every used bin its number."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qttdm.common.models.tokens import KINDS, LARGEST, MU, ScalarTokens, quantile, uniform

numbers = st.floats(-1e4, 1e4, width=32)
columns = st.lists(st.one_of(numbers, st.sampled_from([0.0, 1.0, -3.5])), min_size=1, max_size=60)
bins = st.integers(2, 12)


def fitted(kind: str, values: list[float], bins: int) -> tuple[ScalarTokens, Tensor]:
    tokens, column = ScalarTokens(kind, 1, bins), torch.tensor(values)
    tokens.fit([column])
    return tokens, column


@given(st.sampled_from([*KINDS]), columns, bins)
def test_what_a_bin_stands_for_is_in_it(kind, values, bins):
    tokens, column = fitted(kind, values, bins)
    encoded = tokens.encode(column.unsqueeze(-1))
    assert encoded.min() >= 0
    assert encoded.max() < bins
    assert torch.equal(tokens.encode(tokens.decode(encoded)), encoded)


@given(st.sampled_from([*KINDS]), columns, bins)
def test_larger_numbers_never_have_lower_bins(kind, values, bins):
    tokens, column = fitted(kind, values, bins)
    assert (tokens.encode(column.sort().values.unsqueeze(-1)).squeeze(-1).diff() >= 0).all()


@given(columns, bins)
def test_uniform_bins_are_at_most_half_a_width_off(values, bins):
    tokens, column = fitted("uniform", values, bins)
    width = (max(values) - min(values)) / bins
    decoded = tokens.decode(tokens.encode(column.unsqueeze(-1))).squeeze(-1)
    assert (decoded - column).abs().max() <= width / 2 + 1e-3


@given(columns, bins)
def test_a_number_with_more_than_its_share_is_exact(values, bins):
    """The largest (V-1) / 2 of them: each takes a bin and may cut another in two."""
    tokens, column = fitted("quantile", values, bins)
    found, counts = column.unique(return_counts=True)
    for index in counts.argsort(descending=True, stable=True)[: (bins - 1) // 2]:
        if counts[index] * bins > len(column):
            assert tokens.decode(tokens.encode(found[index].reshape(1, 1))) == found[index]


def test_golden_edges():
    edges, centres = uniform(torch.tensor([0.0, 1.0, 8.0]).double(), 4)
    assert (edges.tolist(), centres.tolist()) == ([2.0, 4.0, 6.0], [1.0, 3.0, 5.0, 7.0])
    edges, centres = quantile(torch.arange(8).double(), 4)
    assert (edges.tolist(), centres.tolist()) == ([2.0, 4.0, 6.0], [1.0, 3.0, 5.0, 6.5])
    sparse = torch.tensor([0.0] * 16 + [1.0, 2.0, 3.0, 4.0]).double()  # an atom and four others in five bins
    edges, centres = quantile(sparse, 4)
    assert (edges.tolist(), centres.tolist()) == ([0.5, 3.0], [0.0, 1.75, 3.5])


def test_quantile_bins_hold_about_as_much_each():
    column = torch.from_numpy(np.random.default_rng(0).lognormal(size=5000)).float()
    tokens, _ = fitted("quantile", column.tolist(), 50)
    counts = tokens.encode(column.unsqueeze(-1)).flatten().bincount(minlength=50)
    assert counts.min() >= 99
    assert counts.max() <= 101


def test_mu_law_is_even_after_its_own_squashing():
    tokens = ScalarTokens("mu-law", 1, 64)
    tokens.fit([torch.zeros(1)])
    squashed = [
        math.copysign(math.log1p(MU * abs(x)) / math.log1p(MU * LARGEST), x) for x in tokens.centres[0].tolist()
    ]
    assert squashed == pytest.approx([-1 + (2 * k + 1) / 64 for k in range(64)], abs=1e-5)


def test_constants_are_one_bin_and_beyond_the_data_are_the_ends():
    tokens, _ = fitted("quantile", [2.5] * 9, 8)
    assert tokens.decode(tokens.encode(torch.tensor([[2.5], [-9.0], [9.0]]))).tolist() == [[2.5]] * 3
    assert tokens.clipped(torch.tensor([[2.5], [-9.0], [9.0]])).tolist() == [[False], [True], [True]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"column 1: got .* want finite"):
        ScalarTokens("uniform", 2, 4).fit([torch.zeros(3), torch.tensor([0.0, bad])])


def test_columns_have_bins_of_their_own():
    tokens = ScalarTokens("uniform", 3, 10)
    tokens.fit([torch.tensor([0.0, 1.0]), torch.tensor([0.0, 10.0]), torch.tensor([-5.0, 5.0])])
    assert tokens.encode(torch.tensor([[0.95, 0.95, 0.95]])).tolist() == [[9, 0, 5]]
    assert tokens.encode(torch.tensor([[0.95, 0.95]]), first=1).tolist() == [[0, 5]]
    assert tokens.decode(torch.tensor([[0, 5]]), first=1).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_expectation_and_percentile_against_a_loop():
    tokens, _ = fitted("quantile", [0.0, 1.0, 4.0, 9.0], 4)
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
    assert tokens.expectation(p, 0).tolist() == pytest.approx([0.2 + 1.2 + 3.6, 0.0])
    assert [tokens.percentile(p, 0, share)[0].item() for share in (0.05, 0.25, 0.5, 0.99)] == [0.0, 1.0, 4.0, 9.0]
