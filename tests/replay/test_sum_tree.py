"""replay/sum_tree.py against a plain list of weights."""

import numpy as np
import pytest

from qttdm.replay.sum_tree import SumTree


def slow_find(weights: np.ndarray, mass: float) -> int:
    """Walk along the weights until the point is covered."""
    for index, weight in enumerate(weights):
        if mass < weight:
            return index
        mass -= weight
    raise AssertionError(mass)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 33])
def test_set_and_find_equal_the_slow_twin(size):
    rng = np.random.default_rng(size)
    tree, weights = SumTree(size), np.zeros(size)
    for _ in range(30):
        indices = rng.integers(0, size, rng.integers(1, 6))
        weights[indices] = rng.integers(0, 4, len(indices))  # integers: sums are exact, whatever their order
        weights[0] += 1
        tree.set(indices, weights[indices])
        tree.set(np.array([0]), weights[0])
        np.testing.assert_array_equal(tree.weights, weights)
        assert tree.total == weights.sum()
        masses = np.arange(0, weights.sum(), 0.25)
        np.testing.assert_array_equal(tree.find(masses), [slow_find(weights, mass) for mass in masses])


def test_fill_equals_set_bit_for_bit():
    rng = np.random.default_rng(0)
    built, filled = SumTree(37), SumTree(37)
    for _ in range(200):
        indices = rng.choice(37, 5, replace=False)
        built.set(indices, rng.exponential(size=5) * 10.0 ** rng.integers(-30, 30))
    filled.fill(built.weights.copy())
    np.testing.assert_array_equal(built._nodes, filled._nodes)


def test_rounding_errors_do_not_pile_up():
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1e-8, 2e-8, 0.0, 0.0]))
    for big in (1e17, 0.0) * 100:
        tree.set(np.array([3]), big)
    assert tree.total == 1e-8 + 2e-8  # adding and subtracting 1e17 would have swallowed both


def test_a_weight_of_zero_is_never_found():
    rng = np.random.default_rng(0)
    for _ in range(100):
        weights = rng.exponential(size=13) * 10.0 ** rng.integers(-300, 200, 13) * (rng.random(13) < 0.4)
        weights[5] = 1e-200
        tree = SumTree(13)
        tree.fill(weights)
        masses = np.array([0.0, np.nextafter(tree.total, 0), tree.total, *rng.random(50) * tree.total])
        assert (weights[tree.find(masses)] > 0).all()


def test_find_leaves_its_argument_alone():
    tree = SumTree(4)
    tree.fill(np.ones(4))
    masses = np.array([0.5, 3.5])
    tree.find(masses)
    np.testing.assert_array_equal(masses, [0.5, 3.5])
