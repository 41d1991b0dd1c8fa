"""learner.permits: which actor may begin a round, by what is stored, heard of and under way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from qttdm.learner.permits import Rounds
from qttdm.replay.limiter import Pace, PaceConfig

LENGTH = 5  # decisions of a round
MAX_BACKLOG = 12
UPDATE = 1.0  # seconds


@pytest.fixture
def rounds() -> Rounds:
    """Actors that may begin: the seed decisions are in."""
    return fresh(LENGTH, MAX_BACKLOG)


def fresh(length: int, most: float) -> Rounds:
    pace = Pace(PaceConfig(max_backlog=most), update_ratio=1.0, seed_decisions=length)
    pace.inserted(length)
    return Rounds(pace)


def ask(rounds: Rounds, actor: int, now: float, stored: int = 0) -> str:
    """As the loop answers an actor."""
    rounds.ended(actor, stored, now)
    if rounds.updates_before_insert(actor, UPDATE) >= 0:
        return "wait"
    rounds.began(actor, now)
    return "collect"


def test_actors_that_are_faster_than_the_learner_take_turns(rounds: Rounds) -> None:
    """Not all begin when the backlog allows one, only to wait together when they have collected."""
    assert [ask(rounds, actor, now=0.0) for actor in range(3)] == ["collect"] * 3  # the learner waits
    verdicts = [ask(rounds, actor, now=0.1, stored=LENGTH) for actor in range(3)]
    assert verdicts == ["collect", "wait", "wait"]  # a backlog of 5; 10, and 5 to come; MAX_BACKLOG is 12
    assert rounds.pace.backlog == 0  # not heard of yet
    rounds.pace.inserted(3 * LENGTH)
    rounds.counted(math.inf)
    rounds.pace.sampled(7)
    assert ask(rounds, 1, now=7.0) == "wait"  # a backlog of 8, 5 to come
    rounds.pace.sampled(2)
    assert [ask(rounds, actor, now=9.0) for actor in (1, 2)] == ["collect", "wait"]


def test_slow_actors_begin_before_the_backlog_is_made(rounds: Rounds) -> None:
    """By when they have collected it will be: a learner of as many updates as one round of all others asks for."""
    for actor in range(4):
        ask(rounds, actor, now=0.0)
    for actor in range(4):
        rounds.ended(actor, LENGTH, now=100.0)
    rounds.counted(math.inf)
    rounds.pace.inserted(4 * LENGTH)
    assert rounds.pace.backlog == 20 > MAX_BACKLOG
    assert [ask(rounds, actor, now=100.0) for actor in range(4)] == [
        "collect",
        "collect",
        "wait",
        "wait",
    ]  # 30, less 15
    rounds.pace.sampled(20)
    assert [ask(rounds, actor, now=120.0) for actor in (2, 3)] == ["collect", "collect"]


def test_what_was_stored_after_the_shards_were_asked_still_counts(rounds: Rounds) -> None:
    rounds.ended(0, MAX_BACKLOG, now=5.0)
    rounds.counted(5.0)
    assert ask(rounds, 1, now=6.0) == "wait"
    rounds.counted(5.1)  # the pace would count it now, had it been read
    assert ask(rounds, 1, now=6.0) == "collect"


def test_an_actor_that_died_while_it_collected_counts_once(rounds: Rounds) -> None:
    """It asks again without having stored anything, and its round before is what is expected of the next."""
    ask(rounds, 0, now=0.0)
    rounds.ended(0, LENGTH, now=0.0)
    rounds.counted(math.inf)
    for _ in range(4):  # begun, and killed
        assert ask(rounds, 0, now=1.0) == "collect"
    rounds.pace.inserted(LENGTH)
    assert rounds.updates_before_insert(1, UPDATE) == LENGTH + LENGTH - MAX_BACKLOG  # the backlog, and what is to come


@pytest.mark.parametrize("actors", [1, 2, 4, 8])
@pytest.mark.parametrize("speed", [0.7, 1.3, 3.0])
@pytest.mark.parametrize("together", [False, True])
def test_the_learner_is_kept_as_busy_as_the_actors_can(actors: int, speed: float, together: bool) -> None:
    """Simulated: actors that make `speed` times as many decisions as there are updates when all of them collect.

    together: they share one core, so that one alone is as fast as all. Whoever had to wait for a round that began too
    late would show here; so would a debt beyond the bound of replay/limiter.py.
    """
    length, most, seconds = 50, 50.0, 6000
    rounds = fresh(length, most)
    pace = rounds.pace
    left = [0.0] * actors  # decisions, of the round under way
    for now in range(seconds):
        collecting = [actor for actor in range(actors) if left[actor] > 0]
        for actor in collecting:
            left[actor] -= speed / (len(collecting) if together else actors)
            if left[actor] <= 0:
                rounds.ended(actor, length, now)
                pace.inserted(length)
                rounds.counted(math.inf)
        if pace.can_sample:  # an update takes one second, as a step does
            pace.sampled()
        assert pace.backlog <= most + actors * length
        for actor in range(actors):
            if left[actor] <= 0 and ask(rounds, actor, now) == "collect":
                left[actor] = length
    assert pace.updates >= 0.9 * min(1.0, speed) * seconds


@pytest.mark.parametrize("actors", [1, 3, 8])
def test_when_the_learner_stops_no_more_than_the_bound_piles_up(actors: int) -> None:
    """Rounds of any length: `max_backlog`, and one round of each actor, the longer of its last and its present one."""
    rng, most = random.Random(actors), 50.0
    rounds = fresh(50, most)
    pace = rounds.pace
    last, length, left = [0] * actors, [0] * actors, [0] * actors
    for now in range(4000):
        for actor in range(actors):
            if left[actor] == 1:
                rounds.ended(actor, length[actor], now)
                pace.inserted(length[actor])
                rounds.counted(math.inf)
                last[actor] = length[actor]
            left[actor] = max(0, left[actor] - 1)
        assert pace.backlog < most + sum(map(max, last, length))
        if now < 2000 and pace.can_sample:
            pace.sampled()
        for actor in range(actors):
            if left[actor] == 0 and ask(rounds, actor, now) == "collect":
                left[actor] = length[actor] = rng.randint(10, 200)
    assert pace.backlog >= most, "it has stopped while there was nothing to do"
    assert left == [0] * actors


def turns(
    rounds: Rounds, actors: int, length: int, steps: int, come: Callable[[int], int], lasts: Callable[[Pace], int]
) -> list[int]:
    """Rounds of `length` decisions that each actor made, simulated: an update takes one step.

    come: when an actor comes. lasts: steps of a round that begins now.
    """
    rng, done, left, pace = random.Random(0), [0] * actors, [0] * actors, rounds.pace
    for now in range(steps):
        for actor in range(actors):
            if left[actor] == 1:
                done[actor] += 1
                rounds.ended(actor, length, now)
                pace.inserted(length)
                rounds.counted(math.inf)
            left[actor] = max(0, left[actor] - 1)
        if pace.can_sample:
            pace.sampled()
        for actor in rng.sample(range(actors), actors):
            if now >= come(actor) and left[actor] == 0 and ask(rounds, actor, now) == "collect":
                left[actor] = lasts(pace)
    return done


@pytest.mark.parametrize("seconds", [5, 10, 15, 25, 50])
def test_an_actor_that_comes_late_has_its_turns(seconds: int) -> None:
    """Where two actors were there before it and are enough for the learner."""
    rounds = fresh(20, most=20.0)
    done = turns(rounds, 3, 20, 6000, come=lambda actor: 300 if actor == 2 else 0, lasts=lambda pace: seconds)
    assert done[2] > 0.5 * sum(done) / 3, done


@pytest.mark.parametrize("actors", [2, 3, 4])
@pytest.mark.parametrize("seconds", [50, 150])
def test_short_rounds_at_first_are_not_held_against_an_actor(actors: int, seconds: int) -> None:
    """Seed episodes are random and take no time to plan: who waits after one would wait for ever."""
    rounds = Rounds(Pace(PaceConfig(max_backlog=500.0), update_ratio=1.0, seed_decisions=1250))

    def lasts(pace: Pace) -> int:
        return 3 if pace.decisions < pace.seed_decisions else seconds

    done = turns(rounds, actors, 250, 20_000, come=lambda actor: 0, lasts=lasts)
    assert min(done) > 0.4 * sum(done) / actors, done
