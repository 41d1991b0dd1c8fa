"""common/models/two_hot.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qttdm.common.models.two_hot import TwoHot, draw, symexp, symlog

BINS = TwoHot(121)
BINS.follow(torch.tensor([-1e9, 1e9]))


@settings(deadline=None)
@given(st.floats(-3e6, 3e6, width=32))
def test_the_mean_of_a_numbers_bins_is_the_number(x: float):
    weights = BINS.encode(torch.tensor([x]))
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (weights > 0).sum() <= 2
    torch.testing.assert_close(BINS.mean(weights.log()), torch.tensor([x]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(symexp(symlog(torch.tensor(x))), torch.tensor(x), rtol=1e-5, atol=1e-6)


def test_numbers_beyond_count_as_the_last_and_zero_has_a_bin_of_its_own():
    assert BINS.encode(torch.tensor(1e9))[-1] == 1.0
    assert BINS.encode(torch.tensor(-1e9))[0] == 1.0
    assert BINS.encode(torch.tensor(0.0))[60] == 1.0
    assert BINS.mean(torch.zeros(121)) == 0.0  # nothing known yet


def test_the_loss_is_least_at_the_numbers_own_weights():
    x = torch.tensor([0.3, -7.0])
    best = BINS.loss(BINS.encode(x).clamp_min(1e-20).log(), x)
    entropy = -torch.xlogy(BINS.encode(x), BINS.encode(x)).sum(dim=-1)
    torch.testing.assert_close(best, entropy, rtol=1e-4, atol=1e-5)
    assert (BINS.loss(torch.randn(2, 121), x) > best).all()


def test_draws_are_as_likely_as_their_logits_say():
    logits = torch.tensor([0.0, math.log(2.0), -math.inf, math.log(5.0)])
    chance = torch.linspace(0, 1, 80_001)[:-1]
    counts = torch.bincount(draw(logits.expand(80_000, 4), chance), minlength=4)
    torch.testing.assert_close(counts / 80_000, torch.tensor([1, 2, 0, 5]) / 8, atol=1e-3, rtol=0)
    assert draw(logits, torch.tensor(1.0 - 1e-8)) == 3
    drawn = BINS.draw(BINS.encode(torch.full((1000,), 2.5)).log(), torch.rand(1000))
    assert drawn.unique().numel() == 2
    assert drawn.mean().item() == pytest.approx(2.5, abs=0.1)


def test_what_was_never_met_has_no_probability():
    bins, logits = TwoHot(121), torch.zeros(121)
    assert bins.mean(logits) == 0.0  # nothing has been met but nothing
    bins.follow(torch.tensor([0.2, 1.0, -0.1]))
    low, high = -0.2840254, 1.1170  # the bins around -0.1 and 1
    drawn = bins.draw(logits.expand(1000, 121), torch.rand(1000))
    assert drawn.min().item() == pytest.approx(low, abs=1e-4)
    assert drawn.max().item() == pytest.approx(high, abs=1e-4)
    assert low < bins.mean(logits) < high
    assert bins.loss(logits, torch.tensor(1.0)).item() == pytest.approx(math.log(5))  # of so many bins
