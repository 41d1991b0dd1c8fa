"""learner.tickets: which actor may begin a round, by what is stored, heard of and under way."""

from __future__ import annotations

import math

import pytest

from learner.tickets import Rounds
from replay.limiter import Pace, PaceConfig

LENGTH = 5  # decisions of a round
LEAD = 12


@pytest.fixture
def rounds() -> Rounds:
    """Actors that may begin: the seed decisions are in."""
    pace = Pace(PaceConfig(lead=LEAD), update_ratio=1.0, seed_decisions=LENGTH)
    pace.inserted(LENGTH)
    return Rounds(pace)


def ask(rounds: Rounds, actor: int, stored: int = 0) -> str:
    """As the loop answers an actor."""
    rounds.ended(actor, stored)
    if rounds.excess(actor) >= 0:
        return "wait"
    rounds.began(actor)
    return "collect"


def test_actors_that_are_faster_than_the_learner_take_turns(rounds: Rounds) -> None:
    """Not all begin when the lead allows one, only to wait together when they have collected."""
    assert [ask(rounds, actor) for actor in range(3)] == ["collect"] * 3  # the learner waits
    verdicts = [ask(rounds, actor, stored=LENGTH) for actor in range(3)]
    assert verdicts == ["collect", "wait", "wait"]  # 5 owed; 10, and 5 to come; LEAD is 12
    assert rounds.pace.owed == 0  # not heard of yet
    rounds.pace.inserted(3 * LENGTH)
    rounds.heard(math.inf)
    rounds.pace.sampled(7)
    assert ask(rounds, 1) == "wait"  # 8 owed, 5 to come
    rounds.pace.sampled(2)
    assert [ask(rounds, actor) for actor in (1, 2)] == ["collect", "wait"]


def test_actors_that_are_slower_than_the_learner_do_not(rounds: Rounds) -> None:
    """Whatever they have under way: by when they have collected, the learner will wait again."""
    assert [ask(rounds, actor) for actor in range(8)] == ["collect"] * 8
    for actor in [*range(8)] * 3:  # one after the other has collected, and the learner has learned from those before
        assert ask(rounds, actor, stored=LENGTH) == "collect"
        rounds.heard(math.inf)
        rounds.pace.inserted(LENGTH)
        rounds.pace.sampled(LENGTH)


def test_what_was_stored_after_the_shards_were_asked_still_counts(rounds: Rounds) -> None:
    rounds.ended(0, LEAD)
    rounds.heard(0.0)  # asked long before
    assert ask(rounds, 1) == "wait"
    rounds.heard(math.inf)  # the pace would count it now, had it been in the news
    assert ask(rounds, 1) == "collect"


def test_an_actor_that_died_while_it_collected_counts_once(rounds: Rounds) -> None:
    """It asks again without having stored anything, and its round before is what is expected of the next."""
    assert ask(rounds, 0) == "collect"
    rounds.ended(0, LENGTH)
    rounds.heard(math.inf)
    for _ in range(4):  # begun, and killed
        assert ask(rounds, 0) == "collect"
    rounds.pace.inserted(LENGTH)
    assert ask(rounds, 1) == "collect"  # 5 owed and 5 to come, under LEAD
    assert rounds.excess(2) == LENGTH + LENGTH - LEAD
