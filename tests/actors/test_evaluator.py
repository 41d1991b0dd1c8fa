"""Tries of an evaluation: counted across processes that fail, hang or are killed in them."""

from __future__ import annotations

from itertools import islice

import pytest

from qttdm.actors.evaluator import MOST_ATTEMPTS, Attempts


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluating"


def test_each_begins_with_the_first_and_has_few(path):
    assert list(Attempts(path, hung=False).of(7)) == list(range(MOST_ATTEMPTS))


def test_after_a_kill_the_same_one_is_made_again(path):
    """So that its result does not depend on the kill."""
    for tried in range(1, MOST_ATTEMPTS + 1):
        list(islice(Attempts(path, hung=False).of(7), tried))
        assert next(Attempts(path, hung=False).of(7)) == tried - 1
        path.unlink()


def test_after_a_hang_it_is_the_next_ones_turn(path):
    for attempt in range(MOST_ATTEMPTS):
        assert next(Attempts(path, hung=attempt > 0).of(7)) == attempt
    assert list(Attempts(path, hung=True).of(7)) == []


def test_a_hang_in_one_does_not_count_in_another(path):
    next(Attempts(path, hung=False).of(7))
    assert next(Attempts(path, hung=True).of(8)) == 0


def test_others_in_between_change_nothing(path):
    """Ray may ask a new process for what is under way in another order."""
    list(islice(Attempts(path, hung=False).of(7), 2))
    attempts = Attempts(path, hung=True)
    assert next(attempts.of(8)) == next(attempts.of(9)) == 0
    again = Attempts(path, hung=True)  # in 9
    assert [next(again.of(version)) for version in (8, 9, 7)] == [0, 1, 2]


def test_one_that_was_given_up_stays_so(path):
    attempts = Attempts(path, hung=False)
    list(attempts.of(7))
    assert next(attempts.of(8)) == 0
    assert list(attempts.of(7)) == list(Attempts(path, hung=False).of(7)) == []


def test_those_without_trouble_are_forgotten(path):
    attempts = Attempts(path, hung=False)
    for version in range(100):
        next(attempts.of(version))
    assert path.read_text() == "99 0\n"


def test_asked_for_once_more_it_is_made_as_it_was(path):
    """By a learner that went on from a checkpoint: with the start states that gave the result then."""
    attempts = Attempts(path, hung=False)
    assert list(islice(attempts.of(7), 2)) == [0, 1]
    assert next(attempts.of(7)) == 1


def test_a_hang_before_the_first_does_no_harm(path):
    assert list(Attempts(path, hung=True).of(7)) == list(range(MOST_ATTEMPTS))
