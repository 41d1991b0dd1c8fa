"""common/weights.py: what arrives is what was sent, or an error."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from qttdm.common.weights import Weights, updates_of, version_of


def make_networks(width: int = 4) -> nn.Module:
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width)), "b": nn.Embedding(5, 2)})


def test_round_trip():
    sender, receiver = make_networks(), make_networks()
    weights = Weights.of(sender, version=7)
    assert weights.version == 7
    assert weights.values.dtype == np.float32
    assert weights.values.shape == (sum(p.numel() for p in sender.parameters()),)
    assert not torch.equal(receiver["b"].weight, sender["b"].weight)
    weights.copy_into(receiver)
    for got, want in zip(receiver.parameters(), sender.parameters(), strict=True):
        assert torch.equal(got, want)
        assert got.requires_grad


def test_a_snapshot_does_not_follow_the_network():
    networks = make_networks()
    weights = Weights.of(networks, 0)
    before = weights.values.copy()
    with torch.no_grad():
        for p in networks.parameters():
            p.add_(1.0)
    assert np.array_equal(weights.values, before)
    weights.copy_into(networks)
    assert np.array_equal(Weights.of(networks, 0).values, before)


def test_half_precision_parameters_travel_as_float32():
    networks = make_networks().to(torch.bfloat16)
    weights = Weights.of(networks, 0)
    assert weights.values.dtype == np.float32
    receiver = make_networks().to(torch.bfloat16)
    weights.copy_into(receiver)
    assert np.array_equal(Weights.of(receiver, 0).values, weights.values)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # it is only read
def test_a_read_only_array_can_be_copied_from():
    weights = Weights.of(make_networks(), 0)
    frozen = np.frombuffer(weights.values.tobytes(), np.float32)  # as it comes out of a message
    receiver = make_networks()
    Weights(frozen, 0, weights.checksum).copy_into(receiver)
    assert np.array_equal(Weights.of(receiver, 0).values, weights.values)


@pytest.mark.parametrize("place", [0, -1])
def test_damage_is_refused_and_nothing_is_overwritten(place: int):
    weights = Weights.of(make_networks(), 3)
    damaged = weights.values.copy()
    damaged.view(np.uint8)[place] ^= 1  # one bit
    receiver = make_networks()
    before = Weights.of(receiver, 0).values
    with pytest.raises(ValueError, match="version 3: checksum"):
        dataclasses.replace(weights, values=damaged).copy_into(receiver)
    assert np.array_equal(Weights.of(receiver, 0).values, before)


@pytest.mark.parametrize("width", [3, 5])
def test_another_architecture_is_refused_and_nothing_is_overwritten(width: int):
    receiver = make_networks(width)
    before = Weights.of(receiver, 0).values
    with pytest.raises(ValueError, match=r"version 9: got \d+ parameters, want \d+"):
        Weights.of(make_networks(), 9).copy_into(receiver)
    assert np.array_equal(Weights.of(receiver, 0).values, before)


def test_versions_grow_with_the_learners_starts_and_tell_the_updates():
    versions = [version_of(generation, updates) for generation in (1, 2, 3) for updates in (0, 1, 999_999_999)]
    assert versions == sorted(set(versions))
    assert [updates_of(version) for version in versions] == 3 * [0, 1, 999_999_999]
    assert updates_of(17) == 17  # a run on one machine has no generations
