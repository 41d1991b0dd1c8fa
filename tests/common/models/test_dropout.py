"""common/models/dropout.py: the statistics of dropout, and one mask for both directions."""

import pytest
import torch
from torch import Tensor

from qttdm.common.models.dropout import Dropout

COUNT = 400_000


def drop(probability: float, x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return Dropout(probability).train()(x)


@pytest.mark.parametrize(("probability", "in_256"), [(0.01, 3), (0.1, 26), (0.5, 128), (0.9, 230), (0.999, 255)])
def test_drop_rate_and_scale(probability: float, in_256: int):
    y = drop(probability, torch.ones(COUNT))
    rate = in_256 / 256
    dropped = (y == 0).float().mean().item()
    # 4.5 standard deviations are less than 1/256.
    assert abs(dropped - rate) < 4.5 * (rate * (1 - rate) / COUNT) ** 0.5
    assert torch.equal(y[y != 0], torch.full_like(y[y != 0], 256 / (256 - in_256)))


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5])
def test_expectation_is_kept(probability: float):
    mean = drop(probability, torch.full((COUNT,), 3.0)).mean().item()
    deviation = 3 * (probability / (1 - probability) / COUNT) ** 0.5
    assert abs(mean - 3) < 5 * deviation


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5, 11), (0, 4)])
def test_any_shape_passes(shape: tuple[int, ...]):
    y = drop(0.5, torch.ones(shape))
    assert y.shape == shape
    assert ((y == 0) | (y == 2)).all()


def test_neighbours_are_dropped_independently():
    # Eight masks come from one random word; whether two neighbours in it fall together must be chance.
    dropped = (drop(0.5, torch.ones(COUNT)) == 0).view(-1, 8).float()
    correlation = torch.corrcoef(dropped.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / len(dropped) ** 0.5


@pytest.mark.parametrize("module", [Dropout(0.5).eval(), Dropout(0.0).train()])
def test_identity_in_eval_and_at_zero(module: Dropout):
    x = torch.randn(50)
    state = torch.get_rng_state()
    assert torch.equal(module(x), x)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it disturb the random stream


def test_gradient_uses_the_same_mask():
    x = torch.randn(1000, requires_grad=True)
    y = drop(0.3, x)
    upstream = torch.randn(1000)
    y.backward(upstream)
    keep = (y != 0).float() * 256 / (256 - 77)
    torch.testing.assert_close(x.grad, upstream * keep)
    torch.testing.assert_close(y.detach(), x.detach() * keep)


def test_one_byte_per_element_waits_for_the_backward_pass():
    saved: list[Tensor] = []
    x = torch.randn(64, 100, requires_grad=True)

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        drop(0.1, x)
    assert sum(tensor.nbytes for tensor in saved) == x.numel()


def test_reproducible_under_a_seed_and_different_between_calls():
    x = torch.ones(1000)
    assert torch.equal(drop(0.1, x, seed=5), drop(0.1, x, seed=5))
    assert not torch.equal(drop(0.1, x, seed=5), drop(0.1, x, seed=6))
    module = Dropout(0.1).train()
    assert not torch.equal(module(x), module(x))
