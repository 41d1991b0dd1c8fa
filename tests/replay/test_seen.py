"""replay/seen.py against a set."""

import random

import pytest

from qttdm.replay.seen import Seen


@pytest.mark.parametrize("seed", range(10))
def test_equals_a_set(seed):
    rng, seen, model = random.Random(seed), Seen(), set()
    for _ in range(200):
        name = (rng.randrange(3), rng.randrange(40))
        assert (name in seen) == (name in model)
        seen.add(*name)
        model.add(name)
        seen = Seen(seen.items())
        for actor in range(3):
            numbers = {number for other, number in model if other == actor}
            assert {number for number in range(-1, 42) if (actor, number) in seen} == numbers
            assert seen.next_number(actor) == max(numbers, default=-1) + 1


def test_numbers_in_order_take_no_memory():
    seen = Seen()
    for number in range(100_000):
        seen.add(7, number)
    assert seen.items() == [(7, [0, 100_000])]


def test_memory_is_bounded_and_the_oldest_gap_closes():
    seen, count = Seen(), Seen.MAX_GAPS + 6
    for number in range(0, 3 * count, 3):  # every third: a gap after each
        seen.add(0, number)
    ((_, bounds),) = seen.items()
    assert len(bounds) == 2 * (Seen.MAX_GAPS + 1)
    assert all((0, number) in seen for number in range(3 * 5))  # 5 gaps too many
    assert (0, 3 * 5 + 1) not in seen
    assert seen.next_number(0) == 3 * (count - 1) + 1
