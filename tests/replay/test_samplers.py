"""replay/samplers.py: each sampler's distribution against the formula it states, written out slowly."""

import numpy as np
import pytest

from qttdm.replay.samplers import Balanced, Uniform

DRAWS = 200_000


def frequencies(sampler: Uniform, stored: range, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """How often each stored decision is drawn, as fractions."""
    drawn = sampler.draw(stored, draws, np.random.default_rng(seed))
    assert len(drawn) == draws
    assert drawn.min() >= stored.start
    assert drawn.max() < stored.stop
    return np.bincount(drawn - stored.start, minlength=len(stored)) / draws


def assert_distribution(got: np.ndarray, want: np.ndarray, draws: int = DRAWS) -> None:
    """No frequency is further than 5 standard deviations from its probability."""
    assert want.sum() == pytest.approx(1.0)
    tolerance = 5 * np.sqrt(want * (1 - want) / draws) + 1e-12
    assert (np.abs(got - want) <= tolerance).all(), np.abs((got - want) / tolerance).max()


def test_uniform():
    stored = range(17, 17 + 40)
    assert_distribution(frequencies(Uniform(), stored), np.full(40, 1 / 40))


def slow_softmax(visits: np.ndarray, temperature: float) -> np.ndarray:
    weights = [np.exp((min(visits) - v) / temperature) for v in visits]
    return np.array(weights) / sum(weights)


def load_visits(sampler: Balanced, visits: np.ndarray, base: int = 0) -> None:
    sampler.load({"base": base, "visits": np.asarray(visits, "<i8").tobytes()})


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("offset", [0, 1_000, 100_000, 10**9])
def test_balanced_is_the_softmax_however_large_the_counts(temperature, offset):
    visits = offset + np.random.default_rng(0).integers(0, 6, 25)
    sampler = Balanced(25, temperature)
    sampler.add(range(25))
    load_visits(sampler, visits)
    assert_distribution(frequencies(sampler, range(25)), slow_softmax(visits, temperature))


def test_balanced_equals_recomputing_the_softmax_for_every_batch():
    """The tree's weights, followed through adds, evictions, draws and rebases, are those of the counts."""
    rng, temperature, capacity = np.random.default_rng(0), 0.02, 40  # cold: rebases come often
    sampler = Balanced(capacity, temperature)
    lengths: list[int] = []
    visits: list[int] = []  # the slow twin: of the stored decisions, oldest first
    first, rebases_by_add, rebases_by_draw = 0, 0, 0
    for _ in range(150):
        length = int(rng.integers(1, 12))
        while len(visits) + length > capacity:
            gone = lengths.pop(0)
            sampler.evict(range(first, first + gone))
            visits, first = visits[gone:], first + gone
        base = sampler._base
        sampler.add(range(first + len(visits), first + len(visits) + length))
        rebases_by_add += sampler._base != base
        lengths.append(length)
        visits += [0] * length
        stored = range(first, first + len(visits))
        for _ in range(int(rng.integers(1, 60))):
            base = sampler._base
            if sampler._tree.total >= sampler._TINY:
                got = sampler._tree.weights[np.array(stored) % capacity] / sampler._tree.total
                np.testing.assert_allclose(got, slow_softmax(np.array(visits), temperature), rtol=1e-9, atol=1e-30)
            for number in sampler.draw(stored, 16, rng):
                visits[number - first] += 1
            rebases_by_draw += sampler._base != base
    assert rebases_by_add > 5
    assert rebases_by_draw > 5


def test_balanced_new_decisions_beside_heavily_visited_ones():
    """The new ones' weight would overflow relative to the old base; they take all draws until they have caught up."""
    sampler = Balanced(8, 0.1)
    sampler.add(range(4))
    load_visits(sampler, np.array([100_000, 100_001, 100_000, 100_002, -1, -1, -1, -1]), base=100_000)
    sampler.add(range(4, 6))
    assert np.isfinite(sampler._tree.total)
    assert_distribution(frequencies(sampler, range(6), draws=1000), np.array([0, 0, 0, 0, 0.5, 0.5]), 1000)


def test_balanced_survives_the_eviction_of_all_weight_but_underflowed_ones():
    sampler = Balanced(8, 0.1)
    sampler.add(range(4))
    sampler.add(range(4, 8))
    load_visits(sampler, np.array([0, 0, 0, 0, 500, 500, 501, 500]))  # exp(-5000) is 0
    sampler.evict(range(0, 4))
    assert sampler._tree.total == 0.0
    want = slow_softmax(np.array([500, 500, 501, 500]), 0.1)
    assert_distribution(frequencies(sampler, range(4, 8)), want)


def test_balanced_evens_out_what_came_early():
    """Episodes of 100 arrive, each followed by 100 draws: the first is drawn far less often than under uniform."""
    early = {}
    for name, sampler in {"uniform": Uniform(), "balanced": Balanced(2000, 1.0)}.items():
        rng, counts = np.random.default_rng(0), np.zeros(2000)
        for start in range(0, 2000, 100):
            sampler.add(range(start, start + 100))
            np.add.at(counts, sampler.draw(range(start + 100), 100, rng), 1)
        early[name] = counts[:100].sum()
    harmonic = 100 * sum(1 / n for n in range(1, 21))  # 360: what uniform gives the first episode, of 2,000 draws
    assert early["uniform"] == pytest.approx(harmonic, rel=0.2)
    assert early["balanced"] < 0.75 * harmonic


def test_balanced_refuses_counts_of_another_capacity():
    with pytest.raises(ValueError, match="got 3, want one per decision of capacity 4"):
        load_visits(Balanced(4, 1.0), np.zeros(3))
