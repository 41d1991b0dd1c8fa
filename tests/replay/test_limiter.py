"""Pace: the ratio holds over any stretch, whoever is slow, and nobody waits for ever."""

from __future__ import annotations

import random

import pytest

from qttdm.common.config import ConfigError, validate
from qttdm.replay.limiter import Pace, PaceConfig


def make(max_backlog: float = 10, ratio: float = 1.0, seed: int = 5) -> Pace:
    return Pace(PaceConfig(max_backlog=max_backlog), ratio, seed)


def may_insert(pace: Pace, **expected: float) -> bool:
    return pace.updates_before_insert(**expected) < 0


def test_blocks_and_unblocks_exactly_at_the_bounds() -> None:
    pace = make(max_backlog=10, ratio=1.0, seed=5)
    assert may_insert(pace)
    assert not pace.can_sample
    pace.inserted(5)
    assert not pace.can_sample, "the seed itself is worth no update"
    pace.inserted(1)
    assert pace.can_sample
    pace.inserted(8)
    assert pace.backlog == 9
    assert may_insert(pace)
    pace.inserted(1)
    assert not may_insert(pace)
    pace.sampled()
    assert may_insert(pace)
    pace.sampled(9)
    assert not pace.can_sample


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("actors", [1, 3, 8])
@pytest.mark.parametrize("fast", ["learner", "actors", "neither"])
def test_ratio_holds_over_any_stretch_and_nobody_is_stuck(ratio: float, actors: int, fast: str) -> None:
    """A random schedule of actors with episodes in flight and a learner: the bound of the module's docstring."""
    rng = random.Random(f"{ratio} {actors} {fast}")
    pace, episode, seed = make(max_backlog=50, ratio=ratio, seed=30), 20, 30
    in_flight = [0] * actors
    slack = pace.config.max_backlog + ratio * episode * actors
    for _ in range(5_000):
        assert may_insert(pace) or pace.can_sample or any(in_flight), pace.waiting_for()
        if rng.random() < {"learner": 0.9, "actors": 0.1, "neither": 0.5}[fast]:
            if pace.can_sample:
                pace.sampled()
        else:
            i = rng.randrange(actors)
            if in_flight[i]:
                in_flight[i] -= 1
                if in_flight[i] == 0:
                    pace.inserted(episode)
            elif may_insert(
                pace,
                under_way=episode * sum(n > 0 for n in in_flight),
                meanwhile=rng.uniform(0, ratio * episode * (actors - 1)),
            ):
                in_flight[i] = rng.randint(1, episode)
        earned = ratio * (pace.decisions - seed)
        assert earned - slack <= pace.updates <= max(0.0, earned)
    assert pace.updates > 100


def test_a_dead_actor_holds_nobody_up() -> None:
    """An episode that was begun and never arrives counts only while there is something else to learn from."""
    pace = make(max_backlog=10, seed=5)
    pace.inserted(20)
    assert not may_insert(pace, under_way=10**6)
    while pace.can_sample:
        pace.sampled()
    assert may_insert(pace, under_way=10**6)


def test_an_actor_looks_ahead() -> None:
    """To the backlog when it has collected: what others are collecting, less what is learned meanwhile."""
    pace = make(max_backlog=10, ratio=2.0, seed=5)
    pace.inserted(7)
    assert pace.backlog == 4
    assert may_insert(pace, under_way=2)
    assert not may_insert(pace, under_way=3)
    assert may_insert(pace, under_way=3, meanwhile=1)
    assert may_insert(pace, uncounted=3, meanwhile=1)
    assert not may_insert(pace, uncounted=3)
    assert pace.updates_before_insert(under_way=3) == 0
    pace.sampled()
    assert may_insert(pace, under_way=3)


def test_save_and_load_go_on_at_the_same_place() -> None:
    pace, again = make(), make()
    pace.inserted(17)
    pace.sampled(3)
    again.load(pace.save())
    assert (again.backlog, may_insert(again), again.can_sample) == (pace.backlog, may_insert(pace), pace.can_sample)


def test_decisions_stored_after_the_checkpoint_are_paid_for_after_a_resume() -> None:
    pace = make(max_backlog=10, seed=5)
    pace.inserted(15)
    pace.sampled(10)
    resumed = make(max_backlog=10, seed=5)
    resumed.load(pace.save())
    resumed.inserted(25)
    assert resumed.backlog == 25
    assert not may_insert(resumed), "no burst of new episodes before those updates are made"


def test_says_what_the_learner_waits_for() -> None:
    pace = make(max_backlog=10, seed=5)
    assert pace.waiting_for() == "the learner waits for 6 more decisions (0 so far)"
    pace.inserted(30)
    assert pace.waiting_for() == "the learner does not wait (it has 25 updates to make)"


def test_a_limit_that_could_deadlock_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_backlog: got 0\.5, want >= 1"):
        validate(PaceConfig, {"max_backlog": 0.5}, "test")


def test_what_so_many_decisions_ask_for_does_not_depend_on_when_it_is_asked() -> None:
    pace = make(ratio=0.5, seed=10)
    assert [pace.updates_for(decisions) for decisions in (0, 10, 11, 30)] == [0, 0, 0.5, 10]
    pace.inserted(30)
    assert pace.updates_for(30) == pace.backlog == 10
    pace.sampled(4)
    assert pace.updates_for(30) == 10
